"""How far one distribution over the classes is from another, from their logarithms."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def relative_entropy(log_p: jax.Array, log_target: jax.Array) -> jax.Array:
  """sum_c q * (log q - log p) - q + p, (B,), for log p and log q (B, C).

  It is the Kullback-Leibler divergence KL(q || p) where p and q sum to 1. It is never negative,
  and exactly 0 where p and q are the same, as is its gradient with respect to either.
  """
  target = jnp.exp(log_target)
  # With p - q added every term is q * (e^d - 1 - d) >= 0, which does not cancel when a high
  # temperature makes d small. Where d is large, e^d may overflow, and p is taken as it is.
  d = log_p - log_target
  excess = jnp.where(d < 1.0, target * jnp.expm1(jnp.minimum(d, 1.0)), jnp.exp(log_p) - target)
  return jnp.sum(excess - target * d, axis=-1)


def entropy(log_p: jax.Array) -> jax.Array:
  """-sum_c p * log p, (B,), for log p (B, C)."""
  return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
