"""Unit vectors, of vectors of any magnitude."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd.losses._numerics import l2_norm, power_of_two


def unit_vectors(x: jax.Array, axis: int, eps: ArrayLike | None = None) -> jax.Array:
  """Return x / |x| over `axis`, without overflow or underflow of the squares.

  Args:
    x: vectors.
    axis: their axis.
    eps: None: zero vectors stay zero and take no gradient. A number, or an array of shape x with
      `axis` of length 1: x / max(|x|, eps), by which a zero vector takes the gradient of a
      division by eps, as in torch.

  >>> unit_vectors(jnp.array([[3e-30, 4e-30], [0.0, 0.0]]), 1)
  Array([[0.6, 0.8],
         [0. , 0. ]], dtype=float32)
  """
  scale = power_of_two(jnp.max(jnp.abs(x), axis=axis, keepdims=True, initial=0.0))
  x = x / scale
  norm = l2_norm(x, axis, keepdims=True)
  if eps is not None:
    return x / jnp.maximum(norm, eps / scale)
  positive = norm > 0
  return x * jnp.where(positive, 1.0 / jnp.where(positive, norm, 1.0), 0.0)
