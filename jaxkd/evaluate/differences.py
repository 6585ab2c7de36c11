"""Differences between two predictors on the same images, with intervals over images."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxkd.evaluate._predictions import log_softmax
from jaxkd.evaluate.bootstrap import Difference, Resampling, paired_means, paired_statistic
from jaxkd.evaluate.budgeted import confidences
from jaxkd.evaluate.fidelity import image_fidelity
from jaxkd.evaluate.quality import image_scores, selective
from jaxkd.evaluate.reliability import binned

# Quantity -> {"value", "low", "high"}; the ends are None where there is no interval.
Differences = dict[str, dict[str, float | None]]

# Coverage of the selective accuracy that is compared.
_COVERAGE = 0.8


def differences(
  ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, resampling: Resampling
) -> Differences:
  """Return the differences in every score of `image_scores`, calibration and selective accuracy."""
  found = _means(image_scores(ours, labels), image_scores(theirs, labels), resampling)
  sides = [(np.exp(log_softmax(z).max(axis=1)), z.argmax(axis=1) == labels) for z in (ours, theirs)]
  found["ece"] = _statistic(_error, sides, len(labels), resampling)
  # The logarithm of the confidence has fewer ties.
  sides = [(confidences(z), (z.argmax(axis=1) == labels).astype(float)) for z in (ours, theirs)]
  found[f"selective_{_COVERAGE:.0%}"] = _statistic(_selective, sides, len(labels), resampling)
  return found


def fidelity_differences(
  ours: np.ndarray,
  theirs: np.ndarray,
  teacher: np.ndarray,
  labels: np.ndarray,
  resampling: Resampling,
) -> Differences:
  """Return the differences in fidelity to a teacher, also on the images where it is wrong."""
  own, other = (image_fidelity(side, teacher) for side in (ours, theirs))
  found = _means(own, other, resampling)
  wrong = teacher.argmax(axis=1) != labels
  if wrong.any():
    name = "agreement_where_wrong"
    own, other = ({name: side["agreement"][wrong]} for side in (own, other))
    found |= _means(own, other, resampling)
  return found


def class_differences(
  ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, resampling: Resampling
) -> list[dict[str, float | None]]:
  """Return the difference in accuracy of each class, over samples of the images of the class."""
  right, other = ((side.argmax(axis=1) == labels).astype(float) for side in (ours, theirs))
  found: list[dict[str, float | None]] = []
  for number in range(ours.shape[1]):
    own = labels == number
    if not own.any():
      found.append({})
      continue
    means = _means({"top1": right[own]}, {"top1": other[own]}, resampling)
    found.append(means["top1"])
  return found


def _means(
  ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], resampling: Resampling
) -> Differences:
  own, other = (np.stack(list(side.values())) for side in (ours, theirs))
  if own.shape[1] < 2:
    gaps = (own - other).mean(axis=1)
    return {name: _without_interval(gap) for name, gap in zip(ours, gaps, strict=True)}
  found = paired_means(own, other, resampling)
  return {name: _entry(value) for name, value in zip(ours, found, strict=True)}


def _statistic(
  statistic: Any, sides: list[Any], count: int, resampling: Resampling
) -> dict[str, float | None]:
  if count < 2:
    everything = np.arange(count)
    return _without_interval(statistic(sides[0], everything) - statistic(sides[1], everything))
  return _entry(paired_statistic(statistic, sides[0], sides[1], count, resampling))


def _error(side: Any, chosen: np.ndarray) -> float:
  confidence, correct = side
  return binned(confidence[chosen], correct[chosen]).error


def _selective(side: Any, chosen: np.ndarray) -> float:
  confidence, correct = side
  return float(selective(confidence[chosen], correct[chosen], (_COVERAGE,))[0])


def _entry(found: Difference) -> dict[str, float | None]:
  return dict(found._asdict())


def _without_interval(value: float) -> dict[str, float | None]:
  return {"value": float(value), "low": None, "high": None}
