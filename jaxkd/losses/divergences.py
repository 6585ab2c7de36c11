"""How far one distribution over the classes is from another, from their logarithms."""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_jvp
def relative_entropy(log_p: jax.Array, log_target: jax.Array) -> jax.Array:
  """sum_c q * (log q - log p) - q + p, (B,), for log p and log q (B, C).

  It is the Kullback-Leibler divergence KL(q || p) where p and q sum to 1. It is never negative,
  and exactly 0 where p and q are the same, as is its gradient with respect to either.

  A logarithm of -inf is a class that is impossible: 0 log 0 = 0 on either side. The value is inf
  where p is 0 and q is not; the gradient is finite there, too.
  """
  *_, terms = _parts(log_p, log_target)
  return jnp.sum(terms, axis=-1)


@relative_entropy.defjvp
def _relative_entropy_jvp(primals, tangents):
  target, excess, terms = _parts(*primals)
  # p - q, rounded as p and q are: where they differ by less, there is nothing to learn.
  slope = (target + excess) - target
  # Nothing moves what is infinite.
  slope, steep = (jnp.where(terms == jnp.inf, 0.0, x) for x in (slope, terms))
  moved = slope * (tangents[0] - tangents[1]) + steep * tangents[1]
  return jnp.sum(terms, axis=-1), jnp.sum(moved, axis=-1)


def _parts(log_p: jax.Array, log_target: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Of every class q, p - q, and q * (log q - log p) - q + p."""
  target = jnp.exp(log_target)
  # With p - q added every term is q * (e^d - 1 - d) >= 0, which does not cancel when a high
  # temperature makes d small. Where d is large, e^d may overflow, and p is taken as it is: so it
  # is where q is 0, whatever d is.
  d = jnp.where(log_target == -jnp.inf, 1.0, log_p - log_target)
  excess = jnp.where(d < 1.0, target * jnp.expm1(jnp.minimum(d, 1.0)), jnp.exp(log_p) - target)
  # A q that is rounded to 0 is not 0, as its logarithm shows: 0 * -inf would be no number.
  terms = jnp.where(d == -jnp.inf, jnp.inf, excess - target * d)
  return target, excess, terms


def entropy(log_p: jax.Array) -> jax.Array:
  """-sum_c p * log p, (B,), for log p (B, C); a class whose log p is -inf adds 0."""
  log_p = jnp.where(log_p == -jnp.inf, 0.0, log_p)
  return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
