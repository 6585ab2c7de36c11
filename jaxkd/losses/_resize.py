"""Pooling of feature maps to a given size, and of two maps to one size."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses._checks import check_arrays
from jaxkd.losses._numerics import widen


def adaptive_average_pool(x: ArrayLike, height: int, width: int) -> jax.Array:
  """Average-pool maps of any size to a given size.

  Output row i is the mean of input rows floor(i*H/height) .. ceil((i+1)*H/height) - 1, columns
  likewise. Bins overlap where the sizes do not divide, and rows repeat where the output is larger.

  Args:
    x: feature maps (B, H, W, C).
    height: rows of the output.
    width: columns of the output.

  Returns:
    (B, height, width, C) in the dtype of x, accumulated in at least float32.

  Raises:
    ConfigError: if x is not (B, H, W, C) or the size is not positive.

  Source: the bins of torch's adaptive_avg_pool2d, which RepDistiller, mdistiller and SimKD use.

  >>> adaptive_average_pool(jnp.arange(3.0).reshape(1, 3, 1, 1), 2, 1).ravel()
  Array([0.5, 1.5], dtype=float32)
  """
  check_arrays("adaptive_average_pool", x)
  x = jnp.asarray(x)
  if x.ndim != 4:
    raise ConfigError(f"adaptive_average_pool: x {x.shape} is not a feature map (B, H, W, C)")
  if height < 1 or width < 1:
    raise ConfigError(f"adaptive_average_pool: no map has the size ({height}, {width})")
  batch, rows, columns, channels = x.shape
  if (rows, columns) == (height, width):
    return x
  (pooled,) = widen(x)
  if rows % height == 0 and columns % width == 0:
    blocks = (batch, height, rows // height, width, columns // width, channels)
    pooled = jnp.mean(pooled.reshape(blocks), axis=(2, 4))
  else:
    # Products with two small matrices are exact and fast, forwards and backwards. HIGHEST: GPUs
    # and TPUs would otherwise round the operands.
    pooled = jnp.einsum(
      "hy,wx,byxc->bhwc",
      jnp.asarray(_averaging_matrix(rows, height), pooled.dtype),
      jnp.asarray(_averaging_matrix(columns, width), pooled.dtype),
      pooled,
      precision=lax.Precision.HIGHEST,
    )
  return pooled.astype(x.dtype)


def adaptive_max_pool(x: ArrayLike, height: int, width: int) -> jax.Array:
  """Max-pool maps of any size to a given size.

  The bins are those of `adaptive_average_pool`. Of equal maxima in a bin, the first in row-major
  order takes the whole gradient.

  Args:
    x: feature maps (B, H, W, C).
    height: rows of the output.
    width: columns of the output.

  Returns:
    (B, height, width, C) in the dtype of x. A bin that holds a NaN gives NaN.

  Raises:
    ConfigError: if x is not (B, H, W, C) or the size is not positive.

  Source: torch's adaptive_max_pool2d, bins and gradient, which torchdistill uses.

  >>> adaptive_max_pool(jnp.arange(3.0).reshape(1, 3, 1, 1), 2, 1).ravel()
  Array([1., 2.], dtype=float32)
  """
  check_arrays("adaptive_max_pool", x)
  x = jnp.asarray(x)
  if x.ndim != 4:
    raise ConfigError(f"adaptive_max_pool: x {x.shape} is not a feature map (B, H, W, C)")
  if height < 1 or width < 1:
    raise ConfigError(f"adaptive_max_pool: no map has the size ({height}, {width})")
  rows, columns = x.shape[1:3]
  if rows % height == 0 and columns % width == 0:
    return _max_of_blocks(height, width, x)
  # Columns first: of equal maxima, the first of the first row then takes the gradient.
  return _max_of_bins(_max_of_bins(x, 2, width), 1, height)


def match_sizes(student: ArrayLike, teacher: ArrayLike) -> tuple[jax.Array, jax.Array]:
  """Bring student and teacher maps to one size by average-pooling the larger one.

  A student with more rows is pooled to the teacher's size; otherwise the teacher is pooled to the
  student's. Maps of equal size, and features (B, D), are unchanged.

  Args:
    student: (B, H, W, C) or (B, D).
    teacher: (B, H', W', C') or (B, D').

  Returns:
    Both, with the same height and width.

  Raises:
    ConfigError: if one is a map and the other is not.

  Source: RepDistiller, mdistiller and SimKD compare H alone and pool both axes to it. Where their
  shapes then agree, this is the same. It extends to non-square maps, where theirs fail: both axes
  take the size of the map with fewer rows.

  >>> s, t = match_sizes(jnp.ones((2, 8, 4, 3)), jnp.ones((2, 4, 2, 5)))
  >>> s.shape, t.shape
  ((2, 4, 2, 3), (2, 4, 2, 5))
  """
  check_arrays("match_sizes", student, teacher)
  student, teacher = jnp.asarray(student), jnp.asarray(teacher)
  if student.ndim == teacher.ndim == 2:
    return student, teacher
  for name, x in (("student", student), ("teacher", teacher)):
    if x.ndim != 4:
      raise ConfigError(
        f"student {student.shape} and teacher {teacher.shape} cannot be brought to one size: "
        f"the {name} is not a feature map (B, H, W, C)"
      )
  if student.shape[1] > teacher.shape[1]:
    return adaptive_average_pool(student, *teacher.shape[1:3]), teacher
  return student, adaptive_average_pool(teacher, *student.shape[1:3])


def _averaging_matrix(size: int, bins: int) -> np.ndarray:
  """Matrix (bins, size) whose row i averages the input positions of bin i."""
  matrix = np.zeros((bins, size))
  for row, (start, stop) in zip(matrix, _bins(size, bins), strict=True):
    row[start:stop] = 1.0 / (stop - start)
  return matrix


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _max_of_blocks(height: int, width: int, x: jax.Array) -> jax.Array:
  """Maximum of each of height x width blocks; of equal maxima the first takes the gradient."""
  return _largest(_blocks(height, width, x))[0]


@_max_of_blocks.defjvp
def _max_of_blocks_jvp(height, width, primals, tangents):
  (x,), (dx,) = primals, tangents
  largest, which = _largest(_blocks(height, width, x))
  moved = _blocks(height, width, dx)
  columns = moved.shape[4]
  # The row-major index of every element within its block.
  indices = columns * lax.broadcasted_iota(which.dtype, moved.shape, 2)
  indices = indices + lax.broadcasted_iota(which.dtype, moved.shape, 4)
  chosen = indices == which[:, :, None, :, None]
  return largest, jnp.sum(jnp.where(chosen, moved, 0), (2, 4), dtype=x.dtype)


def _blocks(height: int, width: int, x: jax.Array) -> jax.Array:
  """Reshape (B, H, W, C) to (B, height, H / height, width, W / width, C)."""
  batch, rows, columns, channels = x.shape
  return x.reshape(batch, height, rows // height, width, columns // width, channels)


def _largest(blocks: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Largest element of each block and its first index; a NaN is larger than any number."""
  rows, columns = blocks.shape[2], blocks.shape[4]
  # Slice by slice: on XLA's CPU an argmax takes several times as long.
  largest = blocks[:, :, 0, :, 0]
  which = jnp.zeros(largest.shape, jnp.int32)
  for index in range(1, rows * columns):
    other = blocks[:, :, index // columns, :, index % columns]
    larger = (other > largest) | ((other != other) & (largest == largest))
    largest, which = jnp.where(larger, other, largest), jnp.where(larger, index, which)
  return largest, which


def _max_of_bins(x: jax.Array, axis: int, bins: int) -> jax.Array:
  """Maximum of each bin along one axis; of equal maxima the first takes the gradient."""
  size = x.shape[axis]
  if size == bins:
    return x
  if size % bins == 0:
    windows = x.reshape(*x.shape[:axis], bins, size // bins, *x.shape[axis + 1 :])
  else:
    # Bins differ in length: shorter ones repeat their last position.
    longest = max(stop - start for start, stop in _bins(size, bins))
    positions = [
      [min(start + i, stop - 1) for i in range(longest)] for start, stop in _bins(size, bins)
    ]
    windows = jnp.take(x, np.array(positions), axis=axis)
  # Not jnp.max: it divides the gradient among equal maxima, such as the many zeros after a ReLU.
  first = jnp.argmax(windows, axis + 1, keepdims=True)
  indices = lax.broadcasted_iota(first.dtype, windows.shape, axis + 1)
  return jnp.sum(jnp.where(indices == first, windows, 0), axis + 1)


def _bins(size: int, bins: int) -> list[tuple[int, int]]:
  """Return (start, stop) of every bin: floor(i*size/bins), ceil((i+1)*size/bins)."""
  return [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]
