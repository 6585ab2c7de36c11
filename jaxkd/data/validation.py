"""Validation of a data set: its splits agree with its fields."""

from __future__ import annotations

import math

import numpy as np

from jaxkd.data.dataset import Dataset
from jaxkd.data.examples import Examples, check_labels, counted_labels, has_label
from jaxkd.data.trees import TreeExamples, check_finite_inputs, check_same_inputs
from jaxkd.errors import ConfigError


def validate_dataset(data: Dataset) -> Dataset:
  """Return the data set if its splits agree with its fields and with each other.

  Raises:
    ConfigError: naming the data set and the split, for a split without examples or without any
      label, a label that counts and is no class, inputs of another type or shape, a number that is
      not finite, a normalisation that is not finite, or another number of class names than of
      classes.
  """
  if data.class_names and len(data.class_names) != data.num_classes:
    raise ConfigError(
      f"data set {data.name!r}: class_names: {len(data.class_names)} names for {data.num_classes} "
      "classes"
    )
  _check_normalisation(data)
  for split in ("train", "validation", "test"):
    examples = getattr(data, split)
    if examples is not None:
      _check_split(f"data set {data.name!r}: {split}", examples, data, split == "train")
  return data


def unseen_classes(data: Dataset) -> str:
  """Describe the classes without a training example in words; "" if there are none."""
  seen = counted_labels(data.train)
  if getattr(data.train, "multi_label", False):
    seen = np.flatnonzero(((data.train.labels > 0) & has_label(data.train)).any(axis=0))
  missing = np.setdiff1d(np.arange(data.num_classes), seen)
  if not missing.size:
    return ""
  more = f" and {missing.size - 1} more" if missing.size > 1 else ""
  first = f"class {missing[0]}"
  if data.class_names:
    first += f" ({data.class_names[missing[0]]})"
  return f"{first}{more} of {data.num_classes} has no training example"


def _check_normalisation(data: Dataset) -> None:
  if data.image_shape is None:
    if data.mean or data.std:
      raise ConfigError(
        f"data set {data.name!r}: mean={data.mean}, std={data.std}: expected () without an "
        "image_shape, as only images are normalised"
      )
    return
  channels = data.image_shape[-1]
  for name, values, least in (("mean", data.mean, -math.inf), ("std", data.std, 0.0)):
    if len(values) != channels or not all(math.isfinite(v) and v > least for v in values):
      wanted = "finite numbers" if name == "mean" else "finite numbers > 0"
      raise ConfigError(
        f"data set {data.name!r}: {name}={values}: expected {channels} {wanted}, one per channel"
      )


def _check_split(where: str, examples: Examples, data: Dataset, training: bool) -> None:
  if len(examples) == 0:
    raise ConfigError(f"{where}: there are no examples")
  labels = examples.labels
  # In a test split, the label of an example must be known; that of a position need not be.
  may_be_hidden = training or labels.ndim > 1
  counted = has_label(examples) if may_be_hidden else _not_padding(examples)
  try:
    if getattr(examples, "multi_label", False):  # whose labels it has checked
      if labels.shape[1] != data.num_classes:
        raise ConfigError(
          f"labels: row 0 has {labels.shape[1]} labels: expected {data.num_classes}, one per class"
        )
    else:
      check_labels(labels, data.num_classes, counted)
  except ConfigError as error:
    raise ConfigError(f"{where}: {error}") from error
  if not counted.any():
    raise ConfigError(f"{where}: no example has a label")
  if labels.shape[1:] != data.train.labels.shape[1:]:
    raise ConfigError(
      f"{where}: labels are {labels.shape[1:]} per example, those of the training examples "
      f"{data.train.labels.shape[1:]}"
    )
  # Only the first input is checked: reading a split that is too large for memory takes long.
  inputs = examples.fetch(np.array([0]))
  if data.image_shape is None:
    check_same_inputs(where, inputs, data.train.fetch(np.array([0])))
  elif not isinstance(inputs, np.ndarray):
    raise ConfigError(
      f"{where}: inputs are a {type(inputs).__name__}, expected images {data.image_shape}; a data "
      "set of other inputs has no image_shape"
    )
  elif inputs.dtype != np.uint8 or inputs.shape[1:] != tuple(data.image_shape):
    raise ConfigError(
      f"{where}: images are {inputs.dtype} {inputs.shape[1:]}, expected uint8 {data.image_shape}"
    )
  if isinstance(examples, TreeExamples):
    check_finite_inputs(where, examples)


def _not_padding(examples: Examples) -> np.ndarray:
  mask = getattr(examples, "mask", None)
  return np.ones(len(examples), bool) if mask is None else np.asarray(mask) != 0
