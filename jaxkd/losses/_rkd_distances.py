"""Squared distances between the samples of a batch, over one or several devices."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.losses._checks import check_samples
from jaxkd.losses._counting import counted_examples, counted_tokens, keep
from jaxkd.losses._numerics import ROUNDINGS, l2_norm, power_of_two, widen

AxisName = str | tuple[str, ...]

# Lower bound of a distance: closer samples count as this far apart, with gradient 0.
_CLOSEST = 1e-6
# Numbers held at a time while the differences of all pairs of samples are formed.
_BLOCK_ELEMENTS = 1 << 22


class Relations(NamedTuple):
  """Squared distances, 0 where two samples are equal up to rounding or one does not count.

  Attributes:
    to_samples: from this device's samples to all, (A, B).
    between: between all samples, (B, B).
    counted: mask (B,) of the samples that count; None if all do.
    closest: lower bound of a distance (not squared), at the scale of these arrays.
  """

  to_samples: jax.Array
  between: jax.Array
  counted: jax.Array | None
  closest: jax.Array


def relations(
  what: str,
  student: ArrayLike,
  teacher: ArrayLike,
  axis_name: AxisName | None,
  where: ArrayLike | None,
  normalize: tuple[bool, bool] = (False, False),
) -> tuple[Relations, Relations]:
  """Return both sides' distances, from which both terms follow; the teacher takes no gradient."""
  student, teacher = widen(student, lax.stop_gradient(teacher), what=what)
  check_samples(what, student, teacher)
  own = counted_examples(what, where, student)
  student, teacher = keep(own, student, teacher)
  # Tokens that are padding are equal in all samples.
  student, teacher = (keep(counted_tokens(what, where, x), x)[0] for x in (student, teacher))
  return (
    _relate(student, own, axis_name, normalize[0]),
    _relate(teacher, own, axis_name, normalize[1]),
  )


@jax.custom_jvp
def _squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
  """Squared distances |x_i - y_j|^2, (A, B), of x (A, D) and y (B, D); 0 for equal samples.

  Computed from the differences: a Gram matrix would lose the distance of close samples to
  rounding. The derivative is that of the Gram form, two matrix products.
  """
  rows = max(1, min(x.shape[0], _BLOCK_ELEMENTS // max(1, y.size)))
  return lax.map(lambda row: jnp.sum(jnp.square(y - row[None]), axis=1), x, batch_size=rows)


def _relate(
  x: jax.Array, own: jax.Array | None, axis_name: AxisName | None, unit: bool
) -> Relations:
  """Return one side's distances; `own` masks the samples of this device that count."""
  x = x.reshape(x.shape[0], -1)
  # Values near 1 have squares that float32 can hold. Relations do not depend on the scale.
  scale = _scale(x, axis_name)
  x = x / scale
  x = _unit_vectors(x) if unit else x
  closest = _CLOSEST if unit else jnp.minimum(_CLOSEST / scale, 1 / _CLOSEST)
  closest = jnp.asarray(closest, x.dtype)
  indices = jnp.arange(len(x))
  gathered, counted = x, own
  if axis_name is not None:
    # No stop_gradient: the student's gradient flows through the gathered samples, too.
    gathered = lax.all_gather(x, axis_name, tiled=True)
    counted = None if own is None else lax.all_gather(own, axis_name, tiled=True)
    indices = indices + lax.axis_index(axis_name) * len(x)
  squares = _squared_distances(x, gathered)
  # A compiler may contract the multiplication that makes x with the subtraction x_i - x_j. Equal
  # samples then differ by a rounding error, which must not count as a distance or a direction.
  norms, all_norms = (jnp.sum(jnp.square(lax.stop_gradient(z)), axis=1) for z in (x, gathered))
  rounding = (ROUNDINGS * jnp.finfo(x.dtype).eps) ** 2
  apart = squares > rounding * jnp.maximum(norms[:, None], all_norms[None])
  apart &= indices[:, None] != jnp.arange(len(gathered))[None]
  # NaN must reach the loss.
  apart |= jnp.isnan(squares)
  if own is not None and counted is not None:
    apart &= own[:, None] & counted[None]
  to_samples = jnp.where(apart, squares, 0.0)
  if axis_name is None:
    return Relations(to_samples, to_samples, counted, closest)
  between = lax.all_gather(to_samples, axis_name, tiled=True)
  return Relations(to_samples, between, counted, closest)


def _scale(x: jax.Array, axis_name: AxisName | None) -> jax.Array:
  """Return a power of two near the largest magnitude in x over all devices."""
  largest = jnp.max(jnp.abs(lax.stop_gradient(x)), initial=0.0)
  return power_of_two(largest if axis_name is None else lax.pmax(largest, axis_name))


def _unit_vectors(x: jax.Array) -> jax.Array:
  """Divide the rows by their norms; zero rows stay zero, with gradient 0."""
  norm = l2_norm(x, 1, keepdims=True)
  positive = norm > 0
  return x * jnp.where(positive, 1.0 / jnp.where(positive, norm, 1.0), 0.0)


@_squared_distances.defjvp
def _squared_distances_jvp(primals, tangents):
  (x, y), (dx, dy) = primals, tangents
  # (x - y).(dx - dy) does not depend on the origin; the mean gives the smallest rounding errors.
  origin = jnp.mean(y, axis=0, keepdims=True)
  xs, ys = x - origin, y - origin
  own = jnp.sum(xs * dx, axis=1)[:, None] + jnp.sum(ys * dy, axis=1)[None, :]
  return _squared_distances(x, y), 2.0 * (own - _products(xs, dy) - _products(dx, ys))


def _products(x: jax.Array, y: jax.Array) -> jax.Array:
  # HIGHEST: GPUs and TPUs would otherwise round the operands.
  return jnp.matmul(x, y.T, precision=lax.Precision.HIGHEST)
