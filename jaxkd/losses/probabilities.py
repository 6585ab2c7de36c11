"""Probabilities from logits, and averages of several networks' predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses.checks import is_number
from jaxkd.losses.precision import widen


def softened(logits: jax.Array, temperature: ArrayLike = 1.0) -> jax.Array:
  """Logits / T. A logit of -inf is an impossible class, and gives T no gradient of 0 * inf."""
  if is_number(temperature):
    return logits if temperature == 1 else logits / temperature
  impossible = logits == -jnp.inf
  return jnp.where(impossible, -jnp.inf, jnp.where(impossible, 0.0, logits) / temperature)


def log_probabilities(logits: jax.Array, temperature: ArrayLike = 1.0) -> jax.Array:
  """Log softmax(logits / T), of the logits' shape; -inf for a logit of -inf.

  Such a logit's gradient is that of its logarithm alone, so 0 in what leaves the logarithm out.

  >>> log_probabilities(jnp.array([0.0, 0.0, -jnp.inf])).round(4)
  Array([-0.6931, -0.6931,    -inf], dtype=float32)
  """
  return jax.nn.log_softmax(softened(_below_largest(logits), temperature))


@jax.custom_jvp
def _below_largest(logits: jax.Array) -> jax.Array:
  """The logits minus their largest; the largest becomes exactly 0. The derivative is 1.

  A compiler may contract a multiplication that makes the logits, a division by T for one, into the
  difference. What is left of the largest logit is then rounding, of 4 at logits of 1e8, and the
  probabilities do not sum to 1. A softmax does not change with what is subtracted.
  """
  largest = jnp.max(logits, axis=-1, keepdims=True)
  is_largest = (logits >= largest) & (jnp.abs(largest) < jnp.inf)
  return jnp.where(is_largest, 0.0, logits - largest)


@_below_largest.defjvp
def _below_largest_jvp(primals, tangents):
  return _below_largest(*primals), tangents[0]


def mean_log_probabilities(
  logits: Sequence[ArrayLike], weights: Sequence[float] | None = None
) -> jax.Array:
  """The logits of an ensemble: log of the mean of softmax probabilities.

  log sum_k w_k softmax(z_k), the weights scaled to sum to 1. The softmax of the result is the
  mean itself.

  Args:
    logits: K arrays (B, C).
    weights: K numbers, none negative and not all 0; None weighs all alike.

  Returns:
    (B, C), float32 or wider. Finite wherever the logits are; -inf, with gradient 0, for a class
    that every network with a weight calls impossible by a logit of -inf.

  Raises:
    ConfigError: for no logits, logits of different shapes, or weights that will not do.

  >>> z = mean_log_probabilities([jnp.array([[0.0, 0.0]]), jnp.array([[100.0, 0.0]])])
  >>> jax.nn.softmax(z).round(4)
  Array([[0.75, 0.25]], dtype=float32)
  """
  if not len(logits):
    raise ConfigError("mean_log_probabilities: there are no logits to average")
  shapes = {jnp.shape(z) for z in logits}
  if len(shapes) > 1:
    raise ConfigError(f"mean_log_probabilities: logits differ in shape: {sorted(shapes)}")
  shares = mean_weights(weights, len(logits))
  # A weight of 0 leaves a network out, infinitely certain or not.
  each = [
    log_probabilities(z) + math.log(w) for z, w in zip(widen(*logits), shares, strict=True) if w > 0
  ]
  if len(each) == 1:
    return each[0]
  stacked = jnp.stack(each)
  impossible = jnp.max(stacked, axis=0) == -jnp.inf
  # The inner where keeps the logarithm's infinite slope at 0 out of the backward pass.
  total = jax.nn.logsumexp(jnp.where(impossible, 0.0, stacked), axis=0)
  return jnp.where(impossible, -jnp.inf, total)


def mean_weights(weights: Sequence[float] | None, count: int) -> list[float]:
  """The weights of a mean of `count` things, scaled to sum to 1.

  Raises:
    ConfigError: unless there are `count` finite numbers, none negative and not all 0.
  """
  if weights is None:
    return [1 / count] * count
  given = list(weights)
  proper = all(is_number(w) and 0 <= w < math.inf for w in given)
  if len(given) != count or not proper or not sum(given) > 0:
    raise ConfigError(
      f"weights are {given}: they must be {count} finite numbers, none negative and not all 0"
    )
  return [w / sum(given) for w in given]
