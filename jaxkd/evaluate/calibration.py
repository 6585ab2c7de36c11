"""Calibration: how far a predictor's confidence is from its accuracy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import ConfigError
from jaxkd.types import Array


def calibration_bins(logits: Array, labels: Array, weights: Array, *, bins: int = 15) -> Array:
  """Sums by bin of confidence, to be added over batches before `calibration_error`.

  The confidence of a prediction is its largest probability. Bin k of n holds those in
  [k / n, (k + 1) / n), the last one 1.0 as well.

  Args:
    logits: (B, C).
    labels: class numbers (B,).
    weights: (B,); 0 leaves an example out, whatever its row holds.
    bins: number of bins of equal width, at least 1.

  Returns:
    (3, bins), float32: sums of weights, of confidences and of correct predictions.

  Raises:
    ConfigError: for fewer than one bin, or shapes that do not belong together.

  >>> calibration_bins(jnp.zeros((2, 2)), jnp.array([0, 1]), jnp.ones(2), bins=2).tolist()
  [[0.0, 2.0], [0.0, 1.0], [0.0, 1.0]]
  """
  if bins < 1:
    raise ConfigError(f"bins={bins}: expected at least 1")
  if logits.ndim != 2 or labels.shape != logits.shape[:1] or weights.shape != logits.shape[:1]:
    raise ConfigError(
      f"logits {logits.shape}, labels {labels.shape} and weights {weights.shape}: expected (B, C), "
      "(B,) and (B,)"
    )
  logits = logits.astype(jnp.float32)
  counts = weights > 0
  confidence = jnp.where(counts, jax.nn.softmax(logits).max(axis=-1), 0.0)
  correct = logits.argmax(axis=-1) == labels
  index = jnp.clip(jnp.floor(confidence * bins).astype(jnp.int32), 0, bins - 1)
  weights = jnp.where(counts, weights, 0.0).astype(jnp.float32)
  rows = jnp.stack([weights, weights * confidence, weights * correct])
  return jnp.zeros((3, bins), jnp.float32).at[:, index].add(rows)


def calibration_error(sums: Array) -> float:
  """Expected calibration error: the mean of |accuracy - confidence| over bins, by their weight.

  Args:
    sums: (3, bins), sums of `calibration_bins` over all batches.

  Returns:
    From 0 to 1; NaN if nothing counts.

  Source: Guo et al., ICML 2017, eq. 3.

  >>> calibration_error(jnp.array([[1.0, 3.0], [0.4, 2.7], [1.0, 3.0]]))
  0.225
  """
  weights, confidences, correct = np.asarray(sums, np.float64)
  total = weights.sum()
  return round(float(np.abs(correct - confidences).sum() / total), 6) if total else float("nan")
