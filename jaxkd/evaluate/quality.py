"""Quality of predictions on every image, by class, and over coverage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxkd.errors import ConfigError
from jaxkd.evaluate._predictions import checked, log_softmax, ranks
from jaxkd.evaluate.budgeted import confidences

# Top-k accuracy is given for this k, where there are more classes.
TOP = 5
COVERAGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def image_scores(logits: Any, labels: Any) -> dict[str, np.ndarray]:
  """Compute the scores of every image, whose means are the scores of a split.

    top1: 1 if the largest logit is the label's, the first of equal ones
    top5: 1 if the label is among the five largest; left out for 5 classes or fewer
    nll: -log p[label], in nats
    brier: sum over classes of (p[c] - [c = label])^2, from 0 to 2

  Args:
    logits: (N, C), finite.
    labels: class numbers (N,).

  Returns:
    Score -> (N,) float64.

  Raises:
    ConfigError: for other shapes, no examples, labels that are no class, and logits that are not
      finite.

  Source: Brier, "Verification of Forecasts Expressed in Terms of Probability", 1950, eq. 2.

  >>> scores = image_scores([[0.0, 0.0]], [1])
  >>> {name: round(float(values[0]), 4) for name, values in scores.items()}
  {'top1': 0.0, 'nll': 0.6931, 'brier': 0.5}
  """
  scores, classes = checked("logits", logits, labels)
  log_probabilities = log_softmax(scores)
  rank = ranks(scores, classes)
  found = {"top1": (rank < 1).astype(np.float64)}
  if scores.shape[1] > TOP:
    found[f"top{TOP}"] = (rank < TOP).astype(np.float64)
  errors = np.exp(log_probabilities)
  errors[np.arange(len(classes)), classes] -= 1
  return {
    **found,
    "nll": -log_probabilities[np.arange(len(classes)), classes],
    "brier": (errors**2).sum(axis=1),
  }


def confusion_matrix(logits: Any, labels: Any) -> np.ndarray:
  """Count the images by class (row) and prediction (column).

  Args:
    logits: (N, C), finite.
    labels: class numbers (N,).

  Returns:
    (C, C) int64.

  Raises:
    ConfigError: as `image_scores`.

  >>> confusion_matrix([[1.0, 0.0], [2.0, 0.0]], [0, 1]).tolist()
  [[1, 0], [1, 0]]
  """
  scores, classes = checked("logits", logits, labels)
  count = scores.shape[1]
  cells = classes * count + scores.argmax(axis=1)
  return np.bincount(cells, minlength=count**2).reshape(count, count)


def class_accuracy(logits: Any, labels: Any) -> np.ndarray:
  """Compute the top-1 accuracy of each class, (C,) float64; NaN for a class without images.

  Args:
    logits: (N, C), finite.
    labels: class numbers (N,).

  Raises:
    ConfigError: as `image_scores`.

  >>> class_accuracy([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]], [0, 1]).tolist()
  [1.0, 0.0, nan]
  """
  counts = confusion_matrix(logits, labels)
  images = counts.sum(axis=1)
  return np.where(images > 0, counts.diagonal() / np.maximum(images, 1), np.nan)


def selective_accuracy(
  logits: Any, labels: Any, coverages: Sequence[float] = COVERAGES
) -> np.ndarray:
  """Compute the accuracy on the most confident images, by the share of images that is predicted.

  At coverage c, the ceil(c N) images of the largest probability are predicted. Of images that tie,
  the mean over all orders is taken, so that the order of the images has no effect.

  Args:
    logits: (N, C), finite.
    labels: class numbers (N,).
    coverages: shares above 0, up to 1.

  Returns:
    An accuracy per coverage, float64.

  Raises:
    ConfigError: as `image_scores`; for a coverage out of range.

  Source: Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017.

  >>> selective_accuracy([[9.0, 0.0], [1.0, 0.0]], [0, 1], [0.5, 1.0]).tolist()
  [1.0, 0.5]
  """
  scores, classes = checked("logits", logits, labels)
  if not all(0 < share <= 1 for share in coverages):
    raise ConfigError(f"coverages={list(coverages)!r}: expected numbers above 0, at most 1")
  correct = (scores.argmax(axis=1) == classes).astype(np.float64)
  return selective(confidences(scores), correct, coverages)


def selective(
  confidence: np.ndarray, correct: np.ndarray, coverages: Sequence[float] = COVERAGES
) -> np.ndarray:
  """Return the mean of `correct` over the most confident; ties count as their mean."""
  _, group = np.unique(-confidence, return_inverse=True)
  sizes = np.bincount(group)
  shared = np.bincount(group, weights=correct) / sizes
  sums = np.cumsum(np.repeat(shared, sizes))
  # The subtrahend keeps 0.3 * 10 = 3.0000000000000004 at 3 images.
  chosen = np.ceil(np.asarray(coverages) * len(correct) - 1e-9).astype(int).clip(1)
  return sums[chosen - 1] / chosen
