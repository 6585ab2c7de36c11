"""A data set with its splits; the mean and deviation of its pixels."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxkd.data import subsets
from jaxkd.data.examples import ArrayExamples, Examples
from jaxkd.errors import ConfigError
from jaxkd.shapes import InputShape, of_one


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
    image_shape: (H, W, C) of images; None for other inputs, which are used as they are.
    mean: mean of each channel over the whole training split, for pixel values scaled to 0..1; ()
      for other inputs.
    std: standard deviation of each channel, likewise.
    class_names: name of each class, or () if they have none.
  """

  name: str
  train: Examples
  validation: Examples | None
  test: Examples
  num_classes: int
  image_shape: tuple[int, int, int] | None = None
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  class_names: tuple[str, ...] = ()

  @property
  def input_shape(self) -> InputShape:
    """(H, W, C) of images, else the pytree of shapes of one example's inputs."""
    return self.image_shape or of_one(self.train.fetch(np.array([0])))


def images_only(data: Dataset) -> tuple[int, int, int]:
  """Return the shape of a data set's images.

  Raises:
    ConfigError: if its inputs are no images.
  """
  if data.image_shape is None:
    raise ConfigError(f"data set {data.name!r}: expected images, and its inputs are none")
  return data.image_shape


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
