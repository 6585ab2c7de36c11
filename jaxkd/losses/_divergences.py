"""Divergences of two distributions given by their logarithms, elementwise exact where they agree.

All of them take log p of the target and log q of the student, (..., C), and sum over the last axis.
A logarithm of -inf is an impossible class: 0 log 0 = 0 on either side.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._checks import check_fraction, is_number
from jaxkd.losses._numerics import difference, entropy, relative_entropy

Divergence = Literal[
  "forward",
  "reverse",
  "symmetric",
  "jensen_shannon",
  "skewed_forward",
  "skewed_reverse",
  "total_variation",
]
DIVERGENCES: tuple[str, ...] = get_args(Divergence)

# The published share where a divergence has one.
BETAS = {"symmetric": 0.5, "jensen_shannon": 0.5, "skewed_forward": 0.1, "skewed_reverse": 0.1}


def check_divergence(divergence: str, beta: ArrayLike | None, cross_entropy: bool = False) -> None:
  """Raise a ConfigError for an unknown divergence, or a share that does not belong to it."""
  if divergence not in DIVERGENCES:
    raise unknown_name("divergence", divergence, DIVERGENCES)
  if beta is not None and divergence not in BETAS:
    raise ConfigError(
      f"beta is {beta}: divergence={divergence!r} has none; those with one are {', '.join(BETAS)}"
    )
  check_fraction("beta", beta)
  if divergence.startswith("skewed") and is_number(beta) and beta == 1:
    raise ConfigError(f"beta is {beta}: a skewed divergence is 0 there; it must be below 1")
  if cross_entropy and divergence not in ("forward", "symmetric", "skewed_forward"):
    raise ConfigError(
      f"cross_entropy=True: divergence={divergence!r} has no term with the teacher's entropy; "
      "forward, symmetric and skewed_forward have"
    )


def divergences(
  divergence: Divergence,
  log_q: jax.Array,
  log_p: jax.Array,
  *,
  beta: ArrayLike | None = None,
  cross_entropy: bool = False,
  drop_impossible: bool = False,
  excess: ArrayLike = 0.0,
) -> jax.Array:
  """Return a divergence of each row, (...).

  Args:
    divergence: see `soft_target_divergence`.
    log_q: the student's logarithms (..., C).
    log_p: the teacher's.
    beta: its share; None is that of `BETAS`.
    cross_entropy: without the teacher's entropy.
    drop_impossible: classes that are impossible on either side add nothing.
    excess: sum p - sum q (...), where these sums are not both 1.
  """
  share: Any = BETAS.get(divergence) if beta is None else beta
  dropped = (log_p == -jnp.inf) | (log_q == -jnp.inf) if drop_impossible else None
  forward = _cross_entropy if cross_entropy else _relative_entropy
  if divergence == "total_variation":
    return _total_variation(log_q, log_p, dropped)
  # `relative_entropy` of a and b subtracts sum a - sum b: it is added again.
  if divergence == "symmetric":
    one, other = forward(log_q, log_p, dropped), _relative_entropy(log_p, log_q, dropped)
    return (1.0 - share) * (one + excess) + share * (other - excess)
  if divergence == "jensen_shannon" and not (is_number(share) and share in (0, 1)):
    # The sum of the mixture is the mean of both sums, so nothing is subtracted.
    middle = log_mixture(log_p, log_q, share)
    one, other = (_relative_entropy(middle, x, dropped) for x in (log_p, log_q))
    return share * one + (1.0 - share) * other
  if divergence.startswith("skewed") and not (is_number(share) and share == 0):
    # Each side is compared with a mixture that has `share` of itself.
    if divergence == "skewed_forward":
      compared = forward(log_mixture(log_p, log_q, share), log_p, dropped)
      return compared + (1.0 - share) * excess
    compared = _relative_entropy(log_mixture(log_q, log_p, share), log_q, dropped)
    return compared - (1.0 - share) * excess
  # The Jensen-Shannon divergence is, as in the published code, one of these at its ends.
  if divergence.endswith("forward") or (divergence == "jensen_shannon" and share == 0):
    return forward(log_q, log_p, dropped) + excess
  return _relative_entropy(log_p, log_q, dropped) - excess


def log_mixture(log_a: jax.Array, log_b: jax.Array, share: ArrayLike) -> jax.Array:
  """Return log(share * a + (1 - share) * b), exactly log a where both agree; 0 < share < 1."""
  a_below = log_a < log_b
  neither = (log_a == -jnp.inf) & (log_b == -jnp.inf)
  lower = jnp.where(neither, 0.0, jnp.where(a_below, log_a, log_b))
  upper = jnp.where(neither, 0.0, jnp.where(a_below, log_b, log_a))
  of_lower = jnp.where(a_below, share, 1.0 - share)
  mixed = upper + jnp.log1p(of_lower * jnp.expm1(lower - upper))
  return jnp.where(neither, -jnp.inf, mixed)


def _relative_entropy(log_b: jax.Array, log_a: jax.Array, dropped: jax.Array | None) -> jax.Array:
  """KL(a || b); over the classes that are not dropped, sum a (log a - log b)."""
  if dropped is None:
    return relative_entropy(log_b, log_a)
  log_a, log_b = (jnp.where(dropped, -jnp.inf, x) for x in (log_a, log_b))
  # Their probabilities need not sum to 1.
  return relative_entropy(log_b, log_a) + jnp.sum(jnp.exp(log_a) - jnp.exp(log_b), axis=-1)


def _cross_entropy(log_b: jax.Array, log_a: jax.Array, dropped: jax.Array | None) -> jax.Array:
  """-sum a log b, as KL(a || b) plus the entropy of a: its gradient is 0 where both agree."""
  kept = log_a if dropped is None else jnp.where(dropped, -jnp.inf, log_a)
  return _relative_entropy(log_b, log_a, dropped) + entropy(kept)


def _total_variation(log_q: jax.Array, log_p: jax.Array, dropped: jax.Array | None) -> jax.Array:
  """Sum |p - q| / 2. It has a kink where p = q: rounding error counts as equal."""
  gap = jnp.abs(difference(jnp.exp(log_q), jnp.exp(log_p)))
  return 0.5 * jnp.sum(gap if dropped is None else jnp.where(dropped, 0.0, gap), axis=-1)
