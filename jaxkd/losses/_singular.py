"""Right singular vectors of matrices, with a gradient that is finite for any matrix."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxkd.losses._numerics import ROUNDINGS, l2_norm
from jaxkd.losses._units import unit_vectors

_multiply = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def right_singular_vectors(x: jax.Array, count: int) -> jax.Array:
  """Return the first right singular vectors (B, C, n) of matrices (B, N, C); n <= `count`.

  They are eigenvectors of x'x. The derivative of the i-th is the sum over the others, j, of v_j
  <v_j, d(x'x) v_i> / (s_i^2 - s_j^2). A term whose divisor is rounding error, of singular values
  that are equal or both 0, is left out: there, only the space of both vectors is determined.
  The signs are those that the decomposition gives.
  """
  return _decomposed(x)[2][:, :, :count]


@right_singular_vectors.defjvp
def _right_singular_vectors_jvp(count: int, primals: Any, tangents: Any) -> Any:
  (x,), (moved,) = primals, tangents
  images, s, v = _decomposed(x)
  found = v[:, :, :count]
  smallest = _rounding(s)
  products = _multiply(jnp.swapaxes(images, 1, 2), _multiply(moved, v))
  # Entry (j, i) is <v_j, d(x'x) v_i>, divided by s_i^2 - s_j^2.
  products = products + jnp.swapaxes(products, 1, 2)
  change = _multiply(v, (products * _inverse(_gaps(s), smallest))[:, :, :count])
  if x.shape[1] < x.shape[2]:
    # The vectors that are orthogonal to all rows, of singular value 0.
    outside = _multiply(jnp.swapaxes(moved, 1, 2), images[:, :, :count])
    outside = outside - _multiply(v, _multiply(jnp.swapaxes(v, 1, 2), outside))
    change = change + outside * _inverse(jnp.square(s[:, None, :count]), smallest)
  return found, change


def _decomposed(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Return x V (B, N, r), the singular values (B, r), and V (B, C, r).

  One step of Newton's method follows the decomposition, whose vectors have the error of several
  roundings divided by the gap between two singular values.
  """
  _, _, transposed = jnp.linalg.svd(x, full_matrices=False)
  v = jnp.swapaxes(transposed, 1, 2)
  images = _multiply(x, v)
  s = l2_norm(images, 1)
  gram, overlaps = (_multiply(jnp.swapaxes(y, 1, 2), y) for y in (images, v))
  errors = gram - overlaps * jnp.square(s)[:, None, :]
  v = unit_vectors(v + _multiply(v, errors * _inverse(_gaps(s), _rounding(s))), 1)
  images = _multiply(x, v)
  return images, l2_norm(images, 1), v


def _gaps(s: jax.Array) -> jax.Array:
  """Return s_i^2 - s_j^2 in entry (j, i), (B, r, r)."""
  return (s[:, None, :] - s[:, :, None]) * (s[:, None, :] + s[:, :, None])


def _rounding(s: jax.Array) -> jax.Array:
  """Return the largest difference of two squares that counts as rounding error, (B, 1, 1)."""
  return ROUNDINGS * jnp.finfo(s.dtype).eps * jnp.square(jnp.max(s, axis=1)[:, None, None])


def _inverse(x: jax.Array, smallest: jax.Array) -> jax.Array:
  """Return 1 / x, or 0 where |x| is at most `smallest`."""
  apart = jnp.abs(x) > smallest
  return jnp.where(apart, 1.0 / jnp.where(apart, x, 1.0), 0.0)
