"""Whether a data set is one that can be learnt from, whoever made it."""

from __future__ import annotations

import math

import numpy as np

from jaxkd.data.examples import UNLABELLED, Examples, check_labels
from jaxkd.data.sources import Dataset
from jaxkd.errors import ConfigError


def check_dataset(data: Dataset) -> Dataset:
  """The data set, if its parts fit what it says of itself.

  Raises:
    ConfigError: naming the data set and the part, for a part without examples, training examples
      that all have no label, a label that is no class, images of another type or shape, or a
      normalisation that is not finite.
  """
  channels = data.image_shape[-1]
  for name, values, least in (("mean", data.mean, -math.inf), ("std", data.std, 0.0)):
    if len(values) != channels or not all(math.isfinite(v) and v > least for v in values):
      wanted = "finite numbers" if name == "mean" else "finite numbers > 0"
      raise ConfigError(
        f"data set {data.name!r}: {name}={values}: expected {channels} {wanted}, one per channel"
      )
  for part in ("train", "validation", "test"):
    examples = getattr(data, part)
    if examples is not None:
      _check_part(f"data set {data.name!r}: {part}", examples, data, part == "train")
  if not np.any(data.train.labels != UNLABELLED):
    raise ConfigError(f"data set {data.name!r}: train: no example has a label")
  return data


def unseen_classes(data: Dataset) -> str:
  """In words, the classes that no training example has; "" if there are none."""
  missing = np.setdiff1d(np.arange(data.num_classes), data.train.labels)
  if not missing.size:
    return ""
  more = f" and {missing.size - 1} more" if missing.size > 1 else ""
  return f"class {missing[0]}{more} of {data.num_classes} has no training example"


def _check_part(where: str, examples: Examples, data: Dataset, unlabelled: bool) -> None:
  if len(examples) == 0:
    raise ConfigError(f"{where}: there are no examples")
  labels = examples.labels
  try:
    check_labels(
      np.where(labels == UNLABELLED, 0, labels) if unlabelled else labels, data.num_classes
    )
  except ConfigError as error:
    raise ConfigError(f"{where}: {error}") from error
  # One stands for all: those of a set too large for memory are not read through.
  image = examples.fetch(np.array([0]))
  if image.dtype != np.uint8 or image.shape[1:] != tuple(data.image_shape):
    raise ConfigError(
      f"{where}: images are {image.dtype} {image.shape[1:]}, expected uint8 {data.image_shape}"
    )
