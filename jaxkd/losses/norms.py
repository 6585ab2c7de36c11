"""Euclidean norms whose gradient is 0, not NaN, at the zero vector."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

Axes = int | tuple[int, ...]


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
