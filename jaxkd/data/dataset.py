"""A data set with its splits; the checks of one; the mean and deviation of its pixels."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from jaxkd.data import subsets
from jaxkd.data.examples import UNLABELLED, ArrayExamples, Examples, check_labels
from jaxkd.errors import ConfigError


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """A data set and its splits.

  Attributes:
    name: name given to `load`.
    train: training examples.
    validation: examples held out from the training split, for choices; or None.
    test: the original test split, or examples held out in its place; for reports, never for
      choices.
    num_classes: labels are 0 .. num_classes - 1.
    image_shape: (H, W, C).
    mean: mean of each channel over the whole training split, for pixel values scaled to 0..1.
    std: standard deviation of each channel, likewise.
    class_names: name of each class, or () if they have none.
  """

  name: str
  train: Examples
  validation: Examples | None
  test: Examples
  num_classes: int
  image_shape: tuple[int, int, int]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  class_names: tuple[str, ...] = ()


# A split on disk has its mean and deviation computed from this number of its images.
_SAMPLE = 10_000
# Number of values converted to int64 at a time; bounds the memory needed beyond the split's own.
_VALUES = 2**24


def divided(
  train: Examples, validation: float | int, per_class: int | None, seed: int
) -> tuple[Examples, Examples | None]:
  """Divide the training split into training and validation examples."""
  held_out = None
  if validation:
    try:
      train, held_out = subsets.split_off(train, validation, seed=seed)
    except ConfigError as error:
      reason = str(error).partition(": ")[2]
      raise ConfigError(f"validation={validation!r}: {reason}") from error
  if per_class is not None:
    train = subsets.per_class(train, per_class, seed=seed)
  return train, held_out


def pixel_statistics(train: Examples) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Compute mean and standard deviation of each channel; sums are exact, in integers.

  They are those of all images of a split in memory. Of a split on disk they are those of 10,000
  images drawn with a fixed seed, since decoding all of them takes long.
  """
  chosen = np.arange(len(train))
  if not isinstance(train, ArrayExamples) and len(train) > _SAMPLE:
    chosen = np.sort(subsets.permutation(len(train), 0)[:_SAMPLE])
  first = train.fetch(np.array([0]))
  channels = first.shape[-1]
  count, total, squares = 0, np.zeros(channels, np.int64), np.zeros(channels, np.int64)
  parts = min(len(chosen), len(chosen) * first.size // _VALUES + 1)
  for positions in np.array_split(chosen, parts):
    pixels = train.fetch(positions).astype(np.int64)
    count += pixels[..., 0].size
    total += pixels.sum((0, 1, 2))
    squares += (pixels**2).sum((0, 1, 2))
  mean = total / count
  std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
  return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def validate_dataset(data: Dataset) -> Dataset:
  """Return the data set if its splits agree with its fields.

  Raises:
    ConfigError: naming the data set and the split, for a split without examples, a training split
      without any label, a label that is no class, images of another type or shape, a normalisation
      that is not finite, or another number of class names than of classes.
  """
  if data.class_names and len(data.class_names) != data.num_classes:
    raise ConfigError(
      f"data set {data.name!r}: class_names: {len(data.class_names)} names for {data.num_classes} "
      "classes"
    )
  channels = data.image_shape[-1]
  for name, values, least in (("mean", data.mean, -math.inf), ("std", data.std, 0.0)):
    if len(values) != channels or not all(math.isfinite(v) and v > least for v in values):
      wanted = "finite numbers" if name == "mean" else "finite numbers > 0"
      raise ConfigError(
        f"data set {data.name!r}: {name}={values}: expected {channels} {wanted}, one per channel"
      )
  for split in ("train", "validation", "test"):
    examples = getattr(data, split)
    if examples is not None:
      _check_split(f"data set {data.name!r}: {split}", examples, data, split == "train")
  if not np.any(data.train.labels != UNLABELLED):
    raise ConfigError(f"data set {data.name!r}: train: no example has a label")
  return data


def unseen_classes(data: Dataset) -> str:
  """Describe the classes without a training example in words; "" if there are none."""
  missing = np.setdiff1d(np.arange(data.num_classes), data.train.labels)
  if not missing.size:
    return ""
  more = f" and {missing.size - 1} more" if missing.size > 1 else ""
  first = f"class {missing[0]}"
  if data.class_names:
    first += f" ({data.class_names[missing[0]]})"
  return f"{first}{more} of {data.num_classes} has no training example"


def _check_split(where: str, examples: Examples, data: Dataset, unlabelled: bool) -> None:
  if len(examples) == 0:
    raise ConfigError(f"{where}: there are no examples")
  labels = examples.labels
  try:
    check_labels(
      np.where(labels == UNLABELLED, 0, labels) if unlabelled else labels, data.num_classes
    )
  except ConfigError as error:
    raise ConfigError(f"{where}: {error}") from error
  # Only the first image is checked: reading a split that is too large for memory takes long.
  image = examples.fetch(np.array([0]))
  if image.dtype != np.uint8 or image.shape[1:] != tuple(data.image_shape):
    raise ConfigError(
      f"{where}: images are {image.dtype} {image.shape[1:]}, expected uint8 {data.image_shape}"
    )
