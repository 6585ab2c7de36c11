"""Accuracy, cross-entropy, and distances between features."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import ConfigError
from jaxkd.types import Array


def score(
  logits: Array, labels: Array, weights: Array, *, where: Array | None = None
) -> dict[str, tuple[Array, Array]]:
  """Compute sums over a batch, to be added over batches and devices before dividing.

  Args:
    logits: (..., C), with any leading axes: (B, C), (B, T, C), (B, H, W, C). A logit of -inf is an
      impossible class.
    labels: class numbers with the leading axes; or class probabilities (..., C), of which the
      largest is the class.
    weights: (B,), or all leading axes; 0 leaves a label out. Dense logits count every position.
    where: nonzero where a position counts, of a shape that `weights` may have; the rest is padding
      with arbitrary values. None counts all.

  Returns:
    {"accuracy": (weighted number correct, sum of weights), "cross_entropy": (nats, sum of weights)}

    The first numbers are NaN if a label that counts is no class: outside 0 to C - 1, or
    probabilities that are negative or do not sum to 1.

  Raises:
    ConfigError: with both shapes, if labels, weights or `where` do not fit the logits.

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
    # The tolerance is wider than in the check of the cross-entropy loss.
    total = jnp.sum(labels, axis=-1, dtype=jnp.float32)
    known = (jnp.abs(total - 1.0) <= 0.02) & jnp.all(labels >= 0, axis=-1)
  else:
    raise ConfigError(
      f"labels {labels.shape} do not belong to logits {logits.shape}: they must be class numbers "
      f"{logits.shape[:-1]} or class probabilities {logits.shape}"
    )
  log_probabilities = jax.nn.log_softmax(logits)
  indices = jnp.clip(classes, 0, logits.shape[-1] - 1)[..., None]
  nll = -jnp.take_along_axis(log_probabilities, indices, axis=-1)[..., 0]
  correct = (jnp.argmax(logits, axis=-1) == classes).astype(jnp.float32)
  # Masked rows may be NaN, and 0 * NaN would make the sum NaN: select instead of multiplying.
  nll, correct = (
    jnp.where(weights > 0, jnp.where(known, x, jnp.nan) * weights, 0.0) for x in (nll, correct)
  )
  return {
    "accuracy": (correct.sum(), weights.sum()),
    "cross_entropy": (nll.sum(), weights.sum()),
  }


def _over_positions(name: str, given: Array, logits: Array) -> Array:
  """Broadcast an array with the first of the logits' leading axes, (B,) or more, to all of them."""
  leading = logits.shape[:-1]
  if given.shape != leading[: given.ndim] or (leading and not given.ndim):
    raise ConfigError(f"{name} {given.shape} do not belong to logits {logits.shape}")
  return jnp.broadcast_to(given.reshape(given.shape + (1,) * (len(leading) - given.ndim)), leading)


def feature_distances(student: np.ndarray, teacher: np.ndarray) -> dict[str, np.ndarray]:
  """Compute the cosine and the relative L2 distance of every example's features.

    cosine: 1 - s.t / (|s| |t|), from 0 to 2
    l2: |s - t| / |t|

  If one of two vectors is zero, the cosine distance is 1; if it is the teacher's, the L2 distance
  is 1, too. Two zero vectors have distances 0.

  Args:
    student: (N, C), for SimKD the projector's output. Flatten or pool maps first.
    teacher: (N, C), of the same examples.

  Returns:
    {"cosine": (N,), "l2": (N,)}, float64.

  Raises:
    ConfigError: if either is not (N, C), or the shapes differ.

  >>> found = feature_distances(np.array([[3.0, 0.0]]), np.array([[0.0, 4.0]]))
  >>> found["cosine"].tolist(), found["l2"].tolist()
  ([1.0], [1.25])
  """
  s, t = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
  if s.ndim != 2:
    raise ConfigError(f"student: shape {s.shape}, expected (examples, channels)")
  if t.shape != s.shape:
    raise ConfigError(f"teacher: shape {t.shape}, expected {s.shape} as student has")
  s_norm, t_norm = (np.linalg.norm(x, axis=1) for x in (s, t))
  difference = np.linalg.norm(s - t, axis=1)
  s_is_zero, t_is_zero = s_norm == 0, t_norm == 0
  # Half the squared distance of the unit vectors: 1 - cosine would round to 0 for close vectors.
  directions = s / np.where(s_is_zero, 1, s_norm)[:, None]
  directions -= t / np.where(t_is_zero, 1, t_norm)[:, None]
  cosine = np.sum(directions**2, axis=1) / 2
  return {
    "cosine": np.where(s_is_zero | t_is_zero, s_is_zero != t_is_zero, cosine),
    "l2": np.where(t_is_zero, ~s_is_zero, difference / np.where(t_is_zero, 1, t_norm)),
  }
