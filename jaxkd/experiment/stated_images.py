"""The images that teachers were trained on, as a config states them."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxkd.errors import needed_by

with needed_by("jaxkd.experiment.stated_images"):
  import ml_collections


from jaxkd.data import Dataset
from jaxkd.errors import ConfigError
from jaxkd.preprocessing import numbers
from jaxkd.types import Preprocessing


@dataclasses.dataclass(frozen=True)
class StatedImages:
  """The config's statements about the images that one teacher was trained on.

  Attributes:
    given: preprocessing of the run.
    mean: mean per channel; () if the config has none.
    std: likewise.
    image_size: side of the images; 0 if the config has none.
  """

  given: Preprocessing
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  image_size: int = 0

  def over(self, usual: Preprocessing) -> Preprocessing:
    """Return `usual`, with the values of the config in place of its own."""
    size = (self.image_size, self.image_size) if self.image_size else usual.image_size
    return Preprocessing(self.mean or usual.mean, self.std or usual.std, size)


def images_of_run(data: Dataset) -> Preprocessing | None:
  """Return the preprocessing of a data set's images; None if its inputs are no images."""
  shape = data.image_shape
  return shape and Preprocessing(tuple(data.mean), tuple(data.std), shape[:2])


def images_of_files(
  section: ml_collections.ConfigDict, data: Dataset, count: int
) -> list[StatedImages]:
  """Return the images that a config's "teacher" section states for each of its files.

  Args:
    section: the section; its `mean`, `std` and `image_size` are one for all files, or one for each.
    data: data set of the run.
    count: number of files.

  Raises:
    ConfigError: if there is not one value per file, or not one number per channel.
  """
  given = images_of_run(data)
  if given is None:
    for field in ("mean", "std", "image_size"):
      if section[field]:
        raise ConfigError(
          f"teacher.{field}={section[field]!r}: the inputs of {data.name} are no images"
        )
    named = next(field for field in ("stablehlo", "weights") if section[field])
    raise ConfigError(
      f"teacher.{named}={section[named]!r}: expected '', as the inputs of {data.name} are no "
      "images; teacher.bundle takes a trained network of any inputs"
    )
  channels = len(given.mean)
  nested = {
    field: any(isinstance(x, list | tuple) for x in section[field]) for field in ("mean", "std")
  }
  nested["image_size"] = isinstance(section.image_size, list | tuple)
  each = {field: _each(field, section[field], several, count) for field, several in nested.items()}

  def one(field: str, number: int) -> tuple[float, ...]:
    values = tuple(each[field][number])
    if not values:
      return ()
    return numbers(f"teacher.{field}", values, channels, positive=field == "std")

  return [
    StatedImages(given, one("mean", n), one("std", n), each["image_size"][n]) for n in range(count)
  ]


def shown(images: Preprocessing) -> str:
  """Return a preprocessing in words."""
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
