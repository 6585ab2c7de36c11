"""Angles of all triples of samples of a batch, in O(B^2) memory.

Angles follow from the sides of a triangle. At the corner i, with d_j = |x_j - x_i|, u_j = 1 / d_j
and D_jk = |x_k - x_j|^2, the law of cosines reads

  cos_ijk = (d_j u_k + u_j d_k - u_j u_k D_jk) / 2,

so the cost does not depend on the width of the embeddings: every triple takes
a few multiplications. A scan goes over the shifts s = k - j (mod B): one step holds (j, corner)
matrices, and half of the shifts cover every pair {j, k}. Corners are processed in blocks that fit
a processor's cache. Arrays have the corner as last axis.

Where one side is r times shorter than the others, a cosine has an error of about r roundings, as
it has from rounding the embeddings.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# (j, corner) pairs at a time; with more, the matrices of a step do not fit the cache.
_BLOCK_PAIRS = 1 << 16


class Corners(NamedTuple):
  """Distances that give the angles at A corners of triangles of B samples; H = B // 2.

  Attributes:
    sides: (B + H, A), distance of sample j (mod B) to the corner.
    inverses: (B + H, A), 1 / sides; 0 where the side is 0 and has no direction.
    opposite: (H + 1, B), squared distance of the samples j and j + s (mod B) at [s, j].
  """

  sides: jax.Array
  inverses: jax.Array
  opposite: jax.Array


def corners(to_samples: jax.Array, between: jax.Array) -> Corners:
  """Return Corners from squared distances: corners to samples (A, B), between samples (B, B)."""
  count = between.shape[0]
  half = count // 2
  squares = to_samples.T
  apart = squares > 0
  inverses = jnp.where(apart, lax.rsqrt(jnp.where(apart, squares, 1.0)), 0.0)
  # Reshaped to rows one element longer, row j starts at the diagonal.
  wrapped = _wrap(between.T, half).T.ravel()
  skewed = jnp.pad(wrapped, (0, count)).reshape(count, count + half + 1)
  return Corners(_wrap(squares * inverses, half), _wrap(inverses, half), skewed[:, : half + 1].T)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def sum_of_angle_hubers(
  student: Corners, teacher: Corners, block_size: int | None = None
) -> jax.Array:
  """Sum over corners i and all j, k of huber(student's cos_ijk - teacher's cos_ijk).

  One scan computes the value and its slopes, so a gradient needs no second scan and stores (B, A)
  matrices only. The teacher is constant.

  Args:
    student: Corners, A of B samples.
    teacher: Corners of the same shapes.
    block_size: corners at a time; None chooses.
  """
  return _value_and_slopes(student, teacher, block_size)[0]


@sum_of_angle_hubers.defjvp
def _sum_of_angle_hubers_jvp(block_size, primals, tangents):
  student, teacher = primals
  value, slopes = _value_and_slopes(student, teacher, block_size)
  products = [jnp.sum(slope * move) for slope, move in zip(slopes, tangents[0], strict=True)]
  return value, sum(products[1:], products[0])


def _value_and_slopes(
  student: Corners, teacher: Corners, block_size: int | None
) -> tuple[jax.Array, Corners]:
  """Return the sum, and its derivatives with respect to the student's Corners."""
  count, among = student.opposite.shape[1], student.sides.shape[1]
  size = min(among, block_size or max(1, _BLOCK_PAIRS // count))
  if size == among:
    return _of_block(student, teacher)

  def blocks(rows: jax.Array) -> jax.Array:
    # The corners that fill up the last block have no sides, so their cosines are 0.
    rows = jnp.pad(rows, ((0, 0), (0, -among % size)))
    return jnp.moveaxis(rows.reshape(rows.shape[0], -1, size), 1, 0)

  def step(carry, block):
    sides, inverses, teacher_sides, teacher_inverses = block
    total, slopes = _of_block(
      Corners(sides, inverses, student.opposite),
      Corners(teacher_sides, teacher_inverses, teacher.opposite),
    )
    return (carry[0] + total, carry[1] + slopes.opposite), (slopes.sides, slopes.inverses)

  start = (jnp.zeros_like(student.opposite[0, 0]), jnp.zeros_like(student.opposite))
  arrays = (student.sides, student.inverses, teacher.sides, teacher.inverses)
  (total, by_opposite), by_corner = lax.scan(step, start, tuple(blocks(a) for a in arrays))
  by_side, by_inverse = (
    jnp.moveaxis(slopes, 0, 1).reshape(slopes.shape[1], -1)[:, :among] for slopes in by_corner
  )
  return total, Corners(by_side, by_inverse, by_opposite)


def _of_block(student: Corners, teacher: Corners) -> tuple[jax.Array, Corners]:
  """Compute `_value_and_slopes` for all corners at once."""
  count = student.opposite.shape[1]
  half = count // 2
  # Pairs {j, k} count twice, except j = k and, if B is even, the longest shift, which has both
  # (j, k) and (k, j).
  weights = np.full(half + 1, 2.0)
  weights[0] = 1.0
  weights[half] = 1.0 if count % 2 == 0 or half == 0 else 2.0

  def step(carry, shifted):
    total, by_side, by_inverse = carry
    shift, weight, opposite, teacher_opposite = shifted
    d_j, u_j, d_k, u_k, square, cosine = _cosines(student, shift, opposite)
    *_, target = _cosines(teacher, shift, teacher_opposite)
    gap = cosine - target
    # Below 1 the Huber loss is gap^2 / 2, above |gap| - 1/2; its slope is the clipped gap.
    slope = jnp.clip(gap, -1.0, 1.0)
    total = total + weight * jnp.sum(slope * (gap - 0.5 * slope), axis=1)
    slope = 0.5 * weight * slope
    by_side = _add(_add(by_side, 0, slope * u_k), shift, slope * u_j)
    by_inverse = _add(by_inverse, 0, slope * (d_k - u_k * square))
    by_inverse = _add(by_inverse, shift, slope * (d_j - u_j * square))
    return (total, by_side, by_inverse), -jnp.sum(slope * u_j * u_k, axis=1)

  zeros = jnp.zeros_like(student.sides)
  start = (jnp.zeros_like(student.opposite[0]), zeros, zeros)
  shifts = (
    jnp.arange(half + 1),
    jnp.asarray(weights, zeros.dtype),
    student.opposite,
    teacher.opposite,
  )
  (total, by_side, by_inverse), by_opposite = lax.scan(step, start, shifts)
  return jnp.sum(total), Corners(by_side, by_inverse, by_opposite)


def _cosines(at: Corners, shift: jax.Array, opposite: jax.Array) -> tuple[jax.Array, ...]:
  """Return d_j, u_j, d_k, u_k, D_jk and cos_ijk for all j and corners i, with k = j + shift."""
  count = opposite.shape[0]
  d_j, u_j = at.sides[:count], at.inverses[:count]
  d_k, u_k = (lax.dynamic_slice_in_dim(a, shift, count) for a in (at.sides, at.inverses))
  square = opposite[:, None]
  return d_j, u_j, d_k, u_k, square, 0.5 * (d_j * u_k + u_j * (d_k - u_k * square))


def _add(rows: jax.Array, start: jax.Array | int, more: jax.Array) -> jax.Array:
  """Add `more` to `rows` from row `start` on."""
  there = lax.dynamic_slice_in_dim(rows, start, more.shape[0])
  return lax.dynamic_update_slice_in_dim(rows, there + more, start, axis=0)


def _wrap(rows: jax.Array, count: int) -> jax.Array:
  """Append the first `count` rows again."""
  return jnp.concatenate([rows, rows[:count]])
