"""Options of a phase that a config's "teacher" or "student" sets: class weights, patience."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxkd.data import UNLABELLED, Dataset, Examples
from jaxkd.errors import ConfigError
from jaxkd.fields import BALANCED


def class_weights_of(
  settings: Any, section: str, examples: Examples, data: Dataset
) -> tuple[float, ...]:
  """Return a section's weight of each class; () if it has none.

  "balanced" is N / (C n_c) for N labels of C classes, of which n_c are of class c, as scikit-learn
  defines it; a class without labels has weight 0, and C is the number of classes that have some.

  Args:
    settings: a config that `check_config` accepts.
    section: "teacher" or "student".
    examples: training examples of the phase.
    data: data set of the run.

  Raises:
    ConfigError: if they are not one per class, or if labels are mixed (`data.mixup`).
  """
  chosen = settings[section].get("class_weights", ())
  if not len(chosen):
    return ()
  where = f"{section}.class_weights={chosen!r}"
  if settings.data.mixup:
    raise ConfigError(f"{where}: expected () with data.mixup={settings.data.mixup:g}")
  if chosen != BALANCED:
    if len(chosen) != data.num_classes:
      raise ConfigError(
        f"{where}: expected {data.num_classes} numbers, one for each class of {data.name}, "
        f"got {len(chosen)}"
      )
    return tuple(float(weight) for weight in chosen)
  labels, mask = np.asarray(examples.labels), getattr(examples, "mask", None)
  counted = labels != UNLABELLED
  if mask is not None and mask.ndim <= labels.ndim:
    counted &= (np.asarray(mask) != 0).reshape(mask.shape + (1,) * (labels.ndim - mask.ndim))
  numbers = np.bincount(labels[counted].reshape(-1), minlength=data.num_classes)
  present = np.count_nonzero(numbers)
  weights = np.where(numbers > 0, numbers.sum() / (max(1, present) * np.maximum(numbers, 1)), 0.0)
  return tuple(float(weight) for weight in weights)


def patience_of(settings: Any, section: str, reported: str, data: Dataset) -> int:
  """Return the epochs without a better validation score after which a phase ends; 0 never does.

  A phase that leaves no predictor has no score, and makes all of its epochs.

  Raises:
    ConfigError: if there is no validation split.
  """
  patience = settings[section].get("patience", 0)
  if patience and data.validation is None:
    raise ConfigError(
      f"{section}.patience={patience}: expected 0 without a validation split (data.validation="
      f"{settings.data.validation:g})"
    )
  return patience if reported else 0
