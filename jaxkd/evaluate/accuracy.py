"""How good predictions are: accuracy and cross-entropy as (sum, count) pairs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.types import Array


def score(logits: Array, labels: Array, weights: Array) -> dict[str, tuple[Array, Array]]:
  """Sums over a batch, to be added over batches and devices before dividing.

  Args:
    logits: (B, C).
    labels: (B,) class numbers, or (B, C) probabilities, whose largest then is the class.
    weights: (B,); 0 leaves an example out.

  Returns:
    {"accuracy": (weighted number correct, sum of weights), "cross_entropy": (nats, sum of weights)}

  >>> scores = score(jnp.eye(2), jnp.array([0, 0]), jnp.ones(2))
  >>> [float(x) for x in scores["accuracy"]]
  [1.0, 2.0]
  """
  logits = logits.astype(jnp.float32)
  weights = weights.astype(jnp.float32)
  classes = labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1)
  log_probabilities = jax.nn.log_softmax(logits)
  nll = -jnp.take_along_axis(log_probabilities, classes[:, None], axis=1)[:, 0]
  # A masked row may hold anything, NaN included: 0 * NaN would poison the sum.
  nll = jnp.where(weights > 0, nll * weights, 0.0)
  correct = (jnp.argmax(logits, axis=-1) == classes) * weights
  return {
    "accuracy": (correct.sum(), weights.sum()),
    "cross_entropy": (nll.sum(), weights.sum()),
  }
