"""The report of what a student is worth: its scores, and its differences to other networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.errors import ConfigError
from jaxkd.evaluate._predictions import checked, log_softmax, same_shape
from jaxkd.evaluate.bootstrap import RESAMPLING, Resampling
from jaxkd.evaluate.differences import class_differences, differences, fidelity_differences
from jaxkd.evaluate.fidelity import agreement_where_wrong, image_fidelity
from jaxkd.evaluate.quality import (
  COVERAGES,
  class_accuracy,
  confusion_matrix,
  image_scores,
  selective_accuracy,
)
from jaxkd.evaluate.reliability import TEMPERATURES, equal_mass_reliability, fit_temperature

Tree = dict[str, Any]
# One predictor's logits (N, C), those of several by name, or of all exits of one network (N, M, C).
Logits = Any

# Number of images with the largest divergence that a report lists, and of classes shown for each.
WORST = 12
_TOP = 3


def report(
  logits: Logits,
  labels: Any,
  teacher_logits: Any = None,
  *,
  baseline_logits: Any = None,
  validation: tuple[Logits, Any] | None = None,
  class_names: Sequence[str] = (),
  resampling: Resampling = RESAMPLING,
) -> Tree:
  """Report the quality, calibration and fidelity of predictors, and their differences.

  Args:
    logits: (N, C), finite; or predictor -> (N, C); or (N, M, C) of M exits, reported as "exit_0",
      ..., and "ensemble", the mean of their probabilities.
    labels: class numbers (N,).
    teacher_logits: (N, C) of the teacher of these classes; None leaves out what compares with it.
    baseline_logits: (N, C) of a student trained alone, likewise.
    validation: logits, in the form of `logits`, and labels of a validation split, to which the
      temperature is fitted; None leaves it out.
    class_names: name of each class; empty for their numbers.
    resampling: samples of the bootstrap over images.

  Returns:
    A tree of dicts, lists, strings and numbers, which JSON can hold; None is a number that does not
    exist, such as the accuracy of a class without images.

      images, classes: class names, level: of the intervals, notes: remarks, a line each
      predictors: name -> scores, reliability, temperature, selective, per_class, confusion,
        fidelity, differences {"teacher", "baseline": quantity -> value, low, high}
      teacher, baseline: their scores, reliability and selective accuracy, or None
      worst: predictor -> images with the largest KL(teacher || student)

    Differences are of the predictor minus the other network.

  Raises:
    ConfigError: naming the argument, for shapes that do not belong together, labels that are no
      class, logits that are not finite, or no images.

  >>> found = report([[2.0, 0.0], [0.0, 1.0]], [0, 0], [[1.0, 0.0], [1.0, 0.0]])
  >>> found["predictors"]["student"]["scores"]["top1"]
  0.5
  >>> found["predictors"]["student"]["differences"]["teacher"]["top1"]
  {'value': -0.5, 'low': -1.0, 'high': 0.0}
  """
  predictors = named_logits(logits)
  called = {n: f"logits[{n!r}]" if isinstance(logits, Mapping) else "logits" for n in predictors}
  first, *_ = predictors
  size, labels = checked(called[first], predictors[first], labels)
  checked_predictors = {
    n: same_shape(called[n], z, called[first], size) for n, z in predictors.items()
  }
  names = _names(class_names, size.shape[1])
  others = {}
  for name, given in (("teacher", teacher_logits), ("baseline", baseline_logits)):
    if given is not None:
      others[name] = same_shape(f"{name}_logits", given, "logits", size)
  temperatures = {}
  if validation is not None:
    held_out = named_logits(validation[0])
    if held_out.keys() != predictors.keys():
      raise ConfigError(
        f"validation: predictors {sorted(held_out)}, expected {sorted(predictors)} as logits have"
      )
    temperatures = {n: fit_temperature(z, validation[1]) for n, z in held_out.items()}
  counts = np.bincount(labels, minlength=len(names))
  found: Tree = {
    "images": len(labels),
    "classes": names,
    "level": resampling.level,
    "notes": _notes(counts, names, temperatures, validation is not None),
    "predictors": {},
    **{name: _alone(others[name], labels) if name in others else None for name in _OTHERS},
    "worst": {},
  }
  for name, own in checked_predictors.items():
    entry = _alone(own, labels)
    entry["temperature"] = _tempered(own, labels, temperatures.get(name))
    entry["confusion"] = confusion_matrix(own, labels).tolist()
    entry["per_class"] = _per_class(own, labels, others, names, resampling)
    entry["fidelity"] = _fidelity(own, others["teacher"], labels) if "teacher" in others else None
    entry["differences"] = {
      other: differences(own, theirs, labels, resampling) for other, theirs in others.items()
    }
    if len(others) == 2:
      entry["differences"]["baseline"] |= fidelity_differences(
        own, others["baseline"], others["teacher"], labels, resampling
      )
    found["predictors"][name] = entry
    if "teacher" in others:
      found["worst"][name] = _worst(own, others["teacher"], labels)
  return found


_OTHERS = ("teacher", "baseline")


def named_logits(logits: Logits) -> dict[str, np.ndarray]:
  """Return logits by predictor, of one, of several by name, or of exits and their ensemble.

  Raises:
    ConfigError: for an empty mapping, or another shape.
  """
  if isinstance(logits, Mapping):
    if not logits:
      raise ConfigError("logits: expected at least one predictor, got none")
    return {str(name): np.asarray(values) for name, values in logits.items()}
  found = np.asarray(logits)
  if found.ndim != 3:
    return {"student": found}
  exits = {f"exit_{number}": found[:, number] for number in range(found.shape[1])}
  with np.errstate(divide="ignore", invalid="ignore"):
    mean = np.log(np.exp(log_softmax(found.astype(np.float64))).mean(axis=1))
  # A probability of 0 in float64 has no finite logarithm.
  return {**exits, "ensemble": np.where(np.isneginf(mean), np.log(np.finfo(float).tiny), mean)}


def _names(given: Sequence[str], count: int) -> list[str]:
  if len(given) not in (0, count):
    raise ConfigError(f"class_names: {len(given)} of them, expected {count} as logits have")
  return [str(name) for name in given] or [str(number) for number in range(count)]


def _notes(
  counts: np.ndarray, names: Sequence[str], temperatures: Mapping[str, float], validated: bool
) -> list[str]:
  notes = [
    f"class {name!r} has no image here: it has no accuracy and no gap"
    for name, count in zip(names, counts, strict=True)
    if not count
  ]
  if counts.sum() < 2:
    notes.append("one image: differences have no interval")
  if not validated:
    notes.append("no validation split: no temperature is fitted")
  notes += [
    f"{name}: the likelihood has no maximum at a temperature within {TEMPERATURES[0]:g} and "
    f"{TEMPERATURES[1]:g}; {value:g} is an end of the range"
    for name, value in temperatures.items()
    if value in TEMPERATURES
  ]
  return notes


def _alone(logits: np.ndarray, labels: np.ndarray) -> Tree:
  """Return what needs no other network."""
  reliability = equal_mass_reliability(logits, labels)
  scores = {name: float(values.mean()) for name, values in image_scores(logits, labels).items()}
  accuracies = selective_accuracy(logits, labels).tolist()
  return {
    "scores": {**scores, "ece": reliability.error, "ece_debiased": reliability.debiased},
    "reliability": {
      "images": reliability.images.tolist(),
      "confidence": reliability.confidence.tolist(),
      "accuracy": reliability.accuracy.tolist(),
    },
    "selective": {"coverage": list(COVERAGES), "accuracy": accuracies},
  }


def _tempered(logits: np.ndarray, labels: np.ndarray, temperature: float | None) -> Tree | None:
  if temperature is None:
    return None
  scaled = logits / temperature
  reliability = equal_mass_reliability(scaled, labels)
  return {
    "value": temperature,
    "nll": float(image_scores(scaled, labels)["nll"].mean()),
    "ece": reliability.error,
    "ece_debiased": reliability.debiased,
  }


def _per_class(
  own: np.ndarray,
  labels: np.ndarray,
  others: Mapping[str, np.ndarray],
  names: Sequence[str],
  resampling: Resampling,
) -> list[Tree]:
  counts = np.bincount(labels, minlength=len(names))
  rows: list[Tree] = [
    {"class": name, "images": int(count), "accuracy": number_or_none(accuracy)}
    for name, count, accuracy in zip(names, counts, class_accuracy(own, labels), strict=True)
  ]
  for other, theirs in others.items():
    gaps = class_differences(own, theirs, labels, resampling)
    accuracies = class_accuracy(theirs, labels)
    for row, accuracy, gap in zip(rows, accuracies, gaps, strict=True):
      row[other] = {"accuracy": number_or_none(accuracy), **gap} if row["images"] else None
  return rows


def _fidelity(own: np.ndarray, teacher: np.ndarray, labels: np.ndarray) -> Tree:
  means = {name: float(values.mean()) for name, values in image_fidelity(own, teacher).items()}
  share, count = agreement_where_wrong(own, teacher, labels)
  return {**means, "agreement_where_wrong": number_or_none(share), "teacher_errors": count}


def _worst(own: np.ndarray, teacher: np.ndarray, labels: np.ndarray) -> list[Tree]:
  """Return the images with the largest divergence, and the likeliest classes of both networks."""
  divergence = image_fidelity(own, teacher)["kl"]
  rows = []
  for number in np.argsort(-divergence, kind="stable")[:WORST]:
    ours, theirs = (np.exp(log_softmax(side[number])) for side in (own, teacher))
    likely = [int(c) for side in (theirs, ours) for c in np.argsort(-side, kind="stable")[:_TOP]]
    classes = list(dict.fromkeys([*likely, int(labels[number])]))
    rows.append(
      {
        "image": int(number),
        "label": int(labels[number]),
        "kl": float(divergence[number]),
        "classes": classes,
        "student": ours[classes].tolist(),
        "teacher": theirs[classes].tolist(),
      }
    )
  return rows


def number_or_none(value: float) -> float | None:
  """Return a number, or None for NaN, which JSON cannot hold."""
  return None if math.isnan(value) else float(value)
