"""Data that a program gives to a run: a data set, or arrays of inputs and labels."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import jax
import numpy as np

from jaxkd.data import (
  UNLABELLED,
  Dataset,
  MultiLabelExamples,
  TreeExamples,
  from_arrays,
  split_off,
  validate_dataset,
)
from jaxkd.data.multi_label import MULTI, SINGLE
from jaxkd.errors import ConfigError

# Number of images of a split whose pixels are part of a data set's digest.
_SAMPLE = 256


def data_set(
  given: Any, *, validation: float, test: float, seed: int, labels: str = SINGLE
) -> Dataset:
  """Return a data set whose name has a digest of its content.

  Args:
    given: a Dataset, or (inputs, labels): images (N, H, W, C) or (N, H, W), uint8 or floats in
      0..1, with one class number each; or a pytree of arrays with leading axis N, which is used as
      it is, with labels (N, ...).
    validation: fraction of the training examples of arrays that is held out; 0 for none.
    test: fraction of all examples of arrays that is held out. The choice does not depend on `seed`.
    seed: seed of the choice of validation examples.
    labels: "single", or "multi" for arrays of labels (N, C), a number in 0..1 for every class; the
      inputs are then used as they are.

  Raises:
    ConfigError: naming the array and the row, or as `validate_dataset`.
  """
  if isinstance(given, Dataset):
    data = validate_dataset(given)
  elif isinstance(given, tuple | list) and len(given) == 2:
    data = validate_dataset(_of_arrays(given[0], given[1], validation, test, seed, labels))
  else:
    raise ConfigError(
      f"data: expected a jaxkd.data.Dataset, (inputs, labels) or the name of a data set, got a "
      f"{type(given).__name__}"
    )
  return dataclasses.replace(data, name=f"{data.name}#{_digest(data)}")


def _of_arrays(
  inputs: Any, labels: Any, validation: float, test: float, seed: int, kind: str
) -> Dataset:
  """Return the data set of arrays, with examples held out."""
  if kind == MULTI:
    several = MultiLabelExamples(inputs, labels)
    return _held_out(several, several.labels.shape[1], validation, test, seed)
  numbers = np.asarray(labels)
  if numbers.ndim == 2 and numbers.shape[1] == 1:
    numbers = numbers[:, 0]
  if hasattr(inputs, "shape") and len(inputs.shape) in (3, 4) and numbers.ndim == 1:
    return from_arrays(inputs, numbers, validation=validation, test=test, seed=seed)
  examples = TreeExamples(inputs, numbers)
  if not len(examples):
    raise ConfigError("labels: there are none")
  wrong = np.flatnonzero((examples.labels < UNLABELLED).reshape(len(examples), -1).any(1))
  if wrong.size:
    raise ConfigError(f"labels: row {wrong[0]} has a number below -1: expected class numbers")
  return _held_out(examples, int(examples.labels.max()) + 1, validation, test, seed)


def _held_out(
  examples: TreeExamples, num_classes: int, validation: float, test: float, seed: int
) -> Dataset:
  """Return the data set of examples, with some of them held out."""
  train, tested = split_off(examples, test, seed=0)
  validated = None
  if validation:
    train, validated = split_off(train, validation, seed=seed)
  return Dataset("arrays", train, validated, tested, num_classes)


def _digest(data: Dataset) -> str:
  """Return a digest of the labels, and of the inputs of a sample of each split."""
  digest = hashlib.sha256()
  for examples in (data.train, data.validation, data.test):
    if examples is None:
      continue
    digest.update(np.ascontiguousarray(examples.labels).tobytes())
    rows = np.unique(np.linspace(0, len(examples) - 1, _SAMPLE).astype(int))
    for leaf in jax.tree.leaves(examples.fetch(rows)):
      digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()[:8]
