"""The images that teachers were trained on, as the config states them."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxkd.errors import needed_by

with needed_by("jaxkd.stated_images"):
  import ml_collections

from jaxkd.data import Dataset
from jaxkd.errors import ConfigError
from jaxkd.preprocessing import numbers
from jaxkd.types import Preprocessing


@dataclasses.dataclass(frozen=True)
class StatedImages:
  """The images that one teacher was trained on, as far as the config states it.

  Attributes:
    given: those of the run.
    mean: () where the config has none.
    std: likewise.
    image_size: the side; 0 where the config has none.
  """

  given: Preprocessing
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  image_size: int = 0

  def over(self, usual: Preprocessing) -> Preprocessing:
    """`usual`, with what the config states in its place."""
    size = (self.image_size, self.image_size) if self.image_size else usual.image_size
    return Preprocessing(self.mean or usual.mean, self.std or usual.std, size)


def images_of_run(data: Dataset) -> Preprocessing:
  """The images of a data set as its networks see them."""
  height, width, _ = data.image_shape
  return Preprocessing(tuple(data.mean), tuple(data.std), (height, width))


def images_of_files(
  own: ml_collections.ConfigDict, data: Dataset, count: int
) -> list[StatedImages]:
  """What a config's "teacher" section states for each of its files.

  Args:
    own: the section; its `mean`, `std` and `image_size` are one for all files, or one for each.
    data: the run's.
    count: of files.

  Raises:
    ConfigError: for more or fewer than one for each file, or than one number per channel.
  """
  given, channels = images_of_run(data), data.image_shape[-1]
  nested = {
    field: any(isinstance(x, list | tuple) for x in own[field]) for field in ("mean", "std")
  }
  nested["image_size"] = isinstance(own.image_size, list | tuple)
  each = {field: _each(field, own[field], several, count) for field, several in nested.items()}

  def one(field: str, number: int) -> tuple[float, ...]:
    values = tuple(each[field][number])
    if not values:
      return ()
    return numbers(f"teacher.{field}", values, channels, positive=field == "std")

  return [
    StatedImages(given, one("mean", n), one("std", n), each["image_size"][n]) for n in range(count)
  ]


def shown(images: Preprocessing) -> str:
  """The images in words."""
  mean, std = (
    f"({', '.join(f'{value:.4g}' for value in values)})" for values in (images.mean, images.std)
  )
  height, width = images.image_size
  return f"{height}x{width}, mean {mean}, std {std}"


def _each(field: str, value: Any, several: bool, count: int) -> list[Any]:
  if not several:
    return [value] * count
  if len(value) != count:
    raise ConfigError(f"teacher.{field}={value}: expected one for each of {count} files")
  return list(value)
