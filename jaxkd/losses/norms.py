"""Euclidean norms whose gradient is 0, not NaN, at the zero vector."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Axes = int | tuple[int, ...]


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
