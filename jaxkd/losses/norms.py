"""Euclidean norms whose gradient is 0, not NaN, at the zero vector."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

Axes = int | tuple[int, ...]

# What is no more than so many machine epsilons of the values is rounding, and counts as 0.
ROUNDINGS = 16


def as_rows(x: jax.Array) -> jax.Array:
  """Every example (B, ...) as a row that is cut in pieces: (B, pieces, n), to reduce over (1, 2).

  XLA's loop over a long last axis on CPU takes two to three times as long as one over pieces of 64.
  """
  size = math.prod(x.shape[1:])
  piece = math.gcd(size, 64)
  return x.reshape(x.shape[0], -1, piece if piece >= 16 else size)


def l2_norm(x: jax.Array, axis: Axes, keepdims: bool = False) -> jax.Array:
  """sqrt(sum x^2) over `axis`; the gradient at a zero vector is 0, as torch.norm has it."""
  squares = jnp.sum(x * x, axis=axis, keepdims=keepdims)
  positive = squares > 0
  # The inner where keeps sqrt's infinite slope at 0 out of the backward pass.
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)


def l2_normalize(
  x: jax.Array, axis: Axes, *, eps: float = 1e-12, eps_added: bool = False
) -> jax.Array:
  """X / max(|x|, eps), or x / (|x| + eps) if `eps_added`. Zero vectors stay zero."""
  norm = l2_norm(x, axis, keepdims=True)
  return x / (norm + eps if eps_added else jnp.maximum(norm, eps))


def power_of_two(largest: jax.Array) -> jax.Array:
  """The power of two below a magnitude, by which values divide without rounding; constant.

  It is 1 for 0 and for what is not finite.

  >>> power_of_two(jnp.array([3.0, 0.0, 1e-18]))
  Array([2.0000000e+00, 1.0000000e+00, 8.6736174e-19], dtype=float32)
  """
  largest = lax.stop_gradient(largest)
  kind = jnp.finfo(largest.dtype)
  integer = jnp.dtype(f"int{kind.bits}")
  # Without its mantissa a number is a power of two.
  bits = lax.bitcast_convert_type(largest, integer) & jnp.array(-(1 << kind.nmant), integer)
  power = jnp.maximum(lax.bitcast_convert_type(bits, largest.dtype), kind.tiny)
  return jnp.where((largest > 0) & jnp.isfinite(largest), power, 1.0)


def l2_distance(x: jax.Array, y: jax.Array, axis: Axes) -> jax.Array:
  """|x - y|_2 over `axis`; exactly 0, with gradient 0, where x and y agree up to rounding.

  A norm has a kink at 0 and a gradient of full size beside it. Compilers round two equal networks
  differently, and what is left of their difference would be divided by its own norm. A distance
  of at most 16 machine epsilons of |y| counts as 0.

  >>> x = jnp.array([3.0, 4.0])
  >>> l2_distance(x * (1 + 1e-7), x, 0), l2_distance(0 * x, x, 0)
  (Array(0., dtype=float32), Array(5., dtype=float32))
  """
  return beyond_rounding(l2_norm(x - y, axis), l2_norm(y, axis))


def beyond_rounding(distance: jax.Array, norm: jax.Array) -> jax.Array:
  """`distance`, or 0 with gradient 0 where it is rounding next to `norm`, that of either side.

  The sides of so small a distance have the same norm, so that one of them is enough.
  """
  rounding = ROUNDINGS * float(jnp.finfo(distance.dtype).eps) * lax.stop_gradient(norm)
  return jnp.where(distance > rounding, distance, 0.0)


def difference(x: jax.Array, y: jax.Array, norm: jax.Array | None = None) -> jax.Array:
  """X - y; exactly 0, with gradient 0, in every element that is no more than rounding.

  For |x - y|, whose kink is at 0. Rounding is 32 machine epsilons of the elements or, given the
  `norm` of y (B, ...) over all axes but the first, (B, 1, ...), of their root mean square.
  """
  gap = x - y
  size = jnp.maximum(jnp.abs(x), jnp.abs(y))
  if norm is not None:
    size = jnp.maximum(size, lax.stop_gradient(norm) / math.sqrt(max(1, math.prod(y.shape[1:]))))
  return jnp.where(jnp.abs(gap) > 2 * ROUNDINGS * jnp.finfo(gap.dtype).eps * size, gap, 0)
