"""Scores of multi-label classification: accuracy per label, exact matches, average precision."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxkd.errors import ConfigError
from jaxkd.types import Array

# Names of the metric of a whole split, and of the arrays that it is computed from.
MEAN_AVERAGE_PRECISION = "mean_average_precision"


def multi_label_score(
  logits: Array, labels: Array, weights: Array, *, where: Array | None = None
) -> dict[str, tuple[Array, Array]]:
  """Compute sums over a batch, to be added over batches and devices before dividing.

  A class is predicted where its logit is above 0 (a probability above 1/2), and applies where its
  label is above 1/2.

  Args:
    logits: (B, C).
    labels: (B, C), in 0..1.
    weights: (B,) or (B, C); 0 leaves labels out.
    where: (B,), nonzero where an example counts; None counts all.

  Returns:
    {"accuracy": (weighted number of correct labels, sum of weights),
    "cross_entropy": (binary cross-entropies in nats, sum of weights),
    "exact_match": (number of examples with every label correct, number with a label)}

    The first numbers are NaN if a label that counts is outside 0..1, or its logit is NaN.

  Raises:
    ConfigError: with both shapes, if labels do not fit the logits.

  >>> found = multi_label_score(
  ...   jnp.array([[1.0, -1.0], [1.0, 1.0]]), jnp.array([[1, 0], [1, 0]]), jnp.ones(2)
  ... )
  >>> [float(x) for x in found["accuracy"]], [float(x) for x in found["exact_match"]]
  ([3.0, 4.0], [1.0, 2.0])
  """
  logits = jnp.asarray(logits).astype(jnp.float32)
  labels = jnp.asarray(labels).astype(jnp.float32)
  if labels.shape != logits.shape:
    raise ConfigError(
      f"labels {labels.shape} do not belong to logits {logits.shape}: expected a number in 0..1 "
      "for every class"
    )
  counted = _label_weights(logits, weights, where)
  known = (labels >= 0) & (labels <= 1) & ~jnp.isnan(logits)
  right = (logits > 0) == (labels > 0.5)
  losses = jnp.where(labels > 0, labels * jax.nn.softplus(-logits), 0.0)
  losses += jnp.where(labels < 1, (1 - labels) * jax.nn.softplus(logits), 0.0)
  nll, correct = (
    jnp.where(counted > 0, jnp.where(known, x, jnp.nan) * counted, 0.0)
    for x in (losses, right.astype(jnp.float32))
  )
  complete = jnp.all((counted == 0) | right, axis=-1).astype(jnp.float32)
  complete *= jnp.where(jnp.all(known | (counted == 0), axis=-1), 1.0, jnp.nan)
  scored = jnp.any(counted > 0, axis=-1)
  return {
    "accuracy": (correct.sum(), counted.sum()),
    "cross_entropy": (nll.sum(), counted.sum()),
    "exact_match": (jnp.where(scored, complete, 0.0).sum(), scored.sum(dtype=jnp.float32)),
  }


def _label_weights(logits: Array, weights: Array, where: Array | None) -> Array:
  """Return the weight of every label, (B, C): weights * where."""

  def spread(given: Array) -> Array:
    given = jnp.asarray(given).astype(jnp.float32)
    return jnp.broadcast_to(given.reshape(given.shape + (1,) * (2 - given.ndim)), logits.shape)

  counted = spread(weights)
  return counted if where is None else jnp.where(spread(where) != 0, counted, 0.0)


def gathered(
  logits: Array,
  labels: Array,
  weights: Array,
  *,
  where: Array | None = None,
  axis_name: str | None = None,
) -> Array:
  """Return logits, labels and weights of the batch of all devices, (3, B, C) float32."""
  weights = _label_weights(logits, weights, where)
  found = jnp.stack([jnp.asarray(x).astype(jnp.float32) for x in (logits, labels, weights)])
  return lax.all_gather(found, axis_name, axis=1, tiled=True) if axis_name else found


def mean_average_precision(
  scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> float:
  """Mean over classes of the average precision of a whole split.

  A class's average precision is the sum over thresholds n, from the highest score down, of
  (R_n - R_n-1) P_n, with precision P and recall R. Equal scores are one threshold, so that the
  order of examples does not matter. Classes that no example has are left out.

  Args:
    scores: (N, C), logits or probabilities.
    labels: (N, C); a class applies above 1/2.
    weights: (N, C); labels of weight 0 are left out. None counts all.

  Returns:
    A number in 0..1; NaN if no class has an example.

  Source: as sklearn.metrics.average_precision_score(average="macro").

  >>> round(mean_average_precision(np.array([[3.0], [2.0], [1.0]]), np.array([[1], [0], [1]])), 4)
  0.8333
  """
  precisions = []
  for number in range(scores.shape[1]):
    weight = np.ones(len(scores)) if weights is None else weights[:, number].astype(np.float64)
    chosen = weight > 0
    score, weight = scores[chosen, number], weight[chosen]
    applies = weight * (labels[chosen, number] > 0.5)
    if not applies.any():
      continue
    if np.isnan(score).any():
      return float("nan")
    order = np.argsort(-score, kind="stable")
    # Not by differences: that of two infinities is NaN.
    ends = np.append(np.flatnonzero(score[order[1:]] != score[order[:-1]]), len(order) - 1)
    found, seen = np.cumsum(applies[order])[ends], np.cumsum(weight[order])[ends]
    precisions.append(np.sum(np.diff(found, prepend=0.0) * found / seen) / found[-1])
  return float(np.mean(precisions)) if precisions else float("nan")
