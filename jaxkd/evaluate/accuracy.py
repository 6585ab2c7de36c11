"""How good predictions are: accuracy and cross-entropy as (sum, count) pairs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.errors import ConfigError
from jaxkd.types import Array


def score(
  logits: Array, labels: Array, weights: Array, *, where: Array | None = None
) -> dict[str, tuple[Array, Array]]:
  """Sums over a batch, to be added over batches and devices before dividing.

  Args:
    logits: (..., C), with any leading axes: (B, C), (B, T, C), (B, H, W, C). A logit of -inf is a
      class that is impossible.
    labels: class numbers of the leading axes; or class probabilities (..., C), whose largest then
      is the class.
    weights: (B,), or all leading axes; 0 leaves a label out. Dense logits count every position.
    where: what counts at all, of the shapes of `weights`; the rest is padding and may hold
      anything. None counts all.

  Returns:
    {"accuracy": (weighted number correct, sum of weights), "cross_entropy": (nats, sum of weights)}

    The first numbers are NaN if a label that counts is no class: outside 0 to C - 1, or
    probabilities that are negative or do not sum to 1.

  Raises:
    ConfigError: with both shapes, if labels, weights or `where` do not belong to the logits.

  >>> scores = score(jnp.eye(2), jnp.array([0, 0]), jnp.ones(2))
  >>> [float(x) for x in scores["accuracy"]]
  [1.0, 2.0]
  >>> dense = score(jnp.zeros((2, 3, 5)), jnp.zeros((2, 3), int), jnp.array([1.0, 0.0]))
  >>> [float(x) for x in dense["accuracy"]]
  [3.0, 3.0]
  """
  logits = jnp.asarray(logits).astype(jnp.float32)
  labels = jnp.asarray(labels)
  weights = _over_positions("weights", jnp.asarray(weights).astype(jnp.float32), logits)
  if where is not None:
    weights = jnp.where(_over_positions("where", jnp.asarray(where), logits) != 0, weights, 0.0)
  if labels.shape == logits.shape[:-1]:
    # A narrow dtype may not hold the number of classes.
    classes = labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)
    known = (classes >= 0) & (classes < logits.shape[-1])
  elif labels.shape == logits.shape:
    classes = jnp.argmax(labels, axis=-1)
    # Looser than the cross-entropy's own check, whose gradient they would be.
    total = jnp.sum(labels, axis=-1, dtype=jnp.float32)
    known = (jnp.abs(total - 1.0) <= 0.02) & jnp.all(labels >= 0, axis=-1)
  else:
    raise ConfigError(
      f"labels {labels.shape} do not belong to logits {logits.shape}: they must be class numbers "
      f"{logits.shape[:-1]} or class probabilities {logits.shape}"
    )
  log_probabilities = jax.nn.log_softmax(logits)
  places = jnp.clip(classes, 0, logits.shape[-1] - 1)[..., None]
  nll = -jnp.take_along_axis(log_probabilities, places, axis=-1)[..., 0]
  correct = (jnp.argmax(logits, axis=-1) == classes).astype(jnp.float32)
  # A masked row may hold anything, NaN included: 0 * NaN would poison the sum.
  nll, correct = (
    jnp.where(weights > 0, jnp.where(known, x, jnp.nan) * weights, 0.0) for x in (nll, correct)
  )
  return {
    "accuracy": (correct.sum(), weights.sum()),
    "cross_entropy": (nll.sum(), weights.sum()),
  }


def _over_positions(name: str, given: Array, logits: Array) -> Array:
  """(B,), or more of the logits' leading axes, repeated over all of them."""
  leading = logits.shape[:-1]
  if given.shape != leading[: given.ndim] or (leading and not given.ndim):
    raise ConfigError(f"{name} {given.shape} do not belong to logits {logits.shape}")
  return jnp.broadcast_to(given.reshape(given.shape + (1,) * (len(leading) - given.ndim)), leading)
