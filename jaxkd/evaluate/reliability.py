"""Calibration on the host: bins of equal mass, a debiased error, and the temperature."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from jaxkd.errors import ConfigError
from jaxkd.evaluate._predictions import checked, log_softmax

BINS = 15
# Range of the fitted temperature: at its ends, the likelihood has no maximum within.
TEMPERATURES = (0.01, 100.0)


class Reliability(NamedTuple):
  """Confidence and accuracy by bin, and the expected calibration error.

  Attributes:
    images: (K,) number of images of each bin, none empty.
    confidence: (K,) mean of the largest probability.
    accuracy: (K,) share of correct predictions.
    error: sum over bins of |accuracy - confidence|, weighted by images.
    debiased: `error` less its bias by the finite number of images, at least 0.
  """

  images: np.ndarray
  confidence: np.ndarray
  accuracy: np.ndarray
  error: float
  debiased: float


def equal_mass_reliability(logits: Any, labels: Any, bins: int = BINS) -> Reliability:
  """Compute the calibration error with bins that hold equal numbers of images.

  The images are sorted by confidence and cut into bins. Images of equal confidence are in one bin,
  so the order of the images has no effect; there are fewer bins where there are fewer images.

  The debiased error subtracts the expected increase of |accuracy - confidence| through the noise of
  the accuracy a of n images, a normal variable of variance a (1 - a) / n:
  sum_b w_b (E|d_b + s_b z| - |d_b|), with d = a - confidence, in closed form.

  Args:
    logits: (N, C), finite.
    labels: class numbers (N,).
    bins: at least 1.

  Raises:
    ConfigError: for other shapes, no examples, labels that are no class, logits that are not
      finite, or fewer than one bin.

  Source: Nixon et al., "Measuring Calibration in Deep Learning", CVPRW 2019 (equal mass); Kumar et
  al., "Verified Uncertainty Calibration", NeurIPS 2019, whose published code estimates the same
  bias for p = 1 by samples (`normal_debiased_ce`).

  >>> found = equal_mass_reliability([[0.0, 0.0]] * 4, [0, 0, 1, 1])
  >>> found.images.tolist(), found.error
  ([4], 0.0)
  """
  if bins < 1:
    raise ConfigError(f"bins={bins}: expected at least 1")
  scores, classes = checked("logits", logits, labels)
  confidence = np.exp(log_softmax(scores).max(axis=1))
  correct = scores.argmax(axis=1) == classes
  return binned(confidence, correct, bins)


def binned(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> Reliability:
  """Return the reliability of confidences (N,) and whether they are correct (N,)."""
  order = np.argsort(confidence)
  confidence, correct = confidence[order], correct[order]
  starts = np.concatenate([[0], np.flatnonzero(np.diff(confidence)) + 1])
  sizes = np.diff(np.append(starts, len(order)))
  # Equal confidences share the bin of their middle rank.
  middle = np.repeat(starts + sizes / 2, sizes)
  index = np.floor(middle * bins / len(order)).astype(int).clip(0, bins - 1)
  images = np.bincount(index, minlength=bins)
  sums = np.bincount(index, confidence, bins), np.bincount(index, correct, bins)
  filled = images > 0
  images = images[filled]
  means, accuracy = (total[filled] / images for total in sums)
  difference = accuracy - means
  error = float(images @ np.abs(difference) / images.sum())
  spread = np.sqrt(accuracy * (1 - accuracy) / images)
  bias = images @ (_folded_mean(difference, spread) - np.abs(difference)) / images.sum()
  return Reliability(images, means, accuracy, error, max(0.0, error - float(bias)))


def _folded_mean(mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
  """Return E|x| of normal variables x."""
  ratio = np.abs(mean) / np.where(spread > 0, spread, 1)
  normal = spread * np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2)
  normal += np.abs(mean) * np.array([math.erf(x / math.sqrt(2)) for x in ratio])
  return np.where(spread > 0, normal, np.abs(mean))


def fit_temperature(logits: Any, labels: Any) -> float:
  """Fit the temperature T of softmax(logits / T) by maximum likelihood.

  The mean negative log-likelihood is convex in 1 / T; its minimum is found by bisection of the
  derivative.

  Args:
    logits: (N, C) of a validation split, on which the network did not learn; finite.
    labels: class numbers (N,).

  Returns:
    T in TEMPERATURES. The lower end means that all predictions are right, so that no finite
    sharpness is best; the upper end that the uniform distribution is best.

  Raises:
    ConfigError: as `equal_mass_reliability`.

  Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.

  >>> round(fit_temperature([[4.0, 0.0]] * 4, [0, 0, 0, 1]) * math.log(3), 6)
  4.0
  """
  scores, classes = checked("logits", logits, labels)
  scores = scores - scores.max(axis=1, keepdims=True)
  own = scores[np.arange(len(classes)), classes]

  def slope(sharpness: float) -> float:
    expected = (np.exp(log_softmax(scores * sharpness)) * scores).sum(axis=1)
    return float((expected - own).mean())

  low, high = (math.log(1 / temperature) for temperature in reversed(TEMPERATURES))
  if slope(math.exp(low)) >= 0:
    return TEMPERATURES[1]
  if slope(math.exp(high)) <= 0:
    return TEMPERATURES[0]
  for _ in range(60):
    middle = (low + high) / 2
    if slope(math.exp(middle)) > 0:
      high = middle
    else:
      low = middle
  return math.exp(-(low + high) / 2)
