"""Rounding to few levels whose gradient is that of the identity: a straight-through estimator."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.types import Array


def rounded(x: Array, low: Array, high: Array, bits: int) -> Array:
  """Round an array to 2**bits levels from `low` to `high`; the gradient passes inside of the range.

  Args:
    x: (...), floating point.
    low: (), at most 0.
    high: (), at least 0. A range of one value gives zeros.
    bits: number of bits.

  Returns:
    (...), of the dtype of x, computed in float32. One of the levels is 0.

  >>> rounded(jnp.array([-9.0, 0.0, 0.4, 3.0]), jnp.float32(0), jnp.float32(3), 2)
  Array([0., 0., 0., 3.], dtype=float32)
  """
  levels = 2**bits - 1
  wide = x.astype(jnp.float32)
  width = jax.lax.stop_gradient(high - low)
  scale = _normal(width / levels)
  zero = jnp.round(-jax.lax.stop_gradient(low) / scale)
  bottom, top = -zero * scale, (levels - zero) * scale
  inside = jnp.clip(wide, bottom, top)
  found = (jnp.clip(jnp.round(wide / scale) + zero, 0, levels) - zero) * scale
  found = jnp.where(width > 0, found, 0.0)
  return (inside + jax.lax.stop_gradient(found - inside)).astype(x.dtype)


def rounded_kernels(tree: Any, bits: int) -> Any:
  """Round the kernels of a tree of parameters, with a scale for each output channel.

  Args:
    tree: parameters; arrays called "kernel" with two axes or more are rounded, others stay.
    bits: number of bits: integers from -(2**(bits - 1) - 1) to 2**(bits - 1) - 1.

  >>> rounded_kernels({"kernel": jnp.array([[1.0, 4.0], [0.3, -2.0]])}, 2)["kernel"]
  Array([[1., 4.],
         [0., 0.]], dtype=float32)
  """

  def converted(path: Any, leaf: Any) -> Any:
    name = getattr(path[-1], "key", None)
    return _symmetric(leaf, bits) if name == "kernel" and jnp.ndim(leaf) > 1 else leaf

  return jax.tree_util.tree_map_with_path(converted, tree)


def _normal(scale: Array) -> Array:
  """Replace scales that are zero, or that XLA flushes to zero, by 1."""
  return jnp.where(scale >= jnp.finfo(jnp.float32).tiny, scale, 1.0)


def _symmetric(kernel: Array, bits: int) -> Array:
  most = 2 ** (bits - 1) - 1
  wide = jax.lax.stop_gradient(kernel).astype(jnp.float32)
  largest = jnp.max(jnp.abs(wide), tuple(range(wide.ndim - 1)), keepdims=True)
  scale = _normal(largest / most)
  found = (jnp.round(wide / scale) * scale).astype(kernel.dtype)
  return kernel + jax.lax.stop_gradient(found - kernel)
