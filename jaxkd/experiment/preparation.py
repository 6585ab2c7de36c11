"""The examples of a phase, and how its networks see them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxkd.data import (
  Dataset,
  Examples,
  augmentation,
  centre_crop,
  normalize,
  per_class,
  with_unlabelled,
)
from jaxkd.errors import ConfigError
from jaxkd.runtime.mapping import AXIS_NAME
from jaxkd.shapes import shown
from jaxkd.types import Array, Batch


def training_preparation(settings: Any, data: Dataset) -> Callable[[Array, Batch], Batch]:
  """Normalisation and augmentation of training batches, by the config's "data" section.

  Inputs that are no images stay as they are.
  """
  if data.image_shape is None:
    return lambda keys, batch: batch
  augment = augmentation(
    crop=settings.data.crop,
    resized_crop=settings.data.resized_crop,
    flip=settings.data.flip,
    cutout=settings.data.cutout,
    mixup=settings.data.mixup,
    num_classes=data.num_classes,
    # The published recipes pad with black before they normalise.
    fill=[-mean / std for mean, std in zip(data.mean, data.std, strict=True)],
    axis_name=AXIS_NAME,
  )
  return lambda keys, batch: augment(keys, _normalized(batch, data))


def evaluation_preparation(settings: Any, data: Dataset) -> Callable[[Batch], Batch]:
  """Normalisation of evaluation batches, and the crop of their middle where training crops."""
  if data.image_shape is None:
    return lambda batch: batch

  def prepare(batch: Batch) -> Batch:
    batch, size = _normalized(batch, data), settings.data.resized_crop
    if not size:
      return batch
    return dataclasses.replace(batch, inputs=centre_crop(batch.inputs, size=size))

  return prepare


def _normalized(batch: Batch, data: Dataset) -> Batch:
  return dataclasses.replace(batch, inputs=normalize(batch.inputs, data.mean, data.std))


# Fields of the config's "data" section that change images, and those that move their pixels.
_AUGMENTATIONS = ("crop", "resized_crop", "flip", "cutout", "mixup")


def check_augmentation(settings: Any, data: Dataset) -> None:
  """Raise a ConfigError for an augmentation of inputs that are no images, or have dense labels."""
  chosen = [field for field in _AUGMENTATIONS if settings.data.get(field)]
  if not chosen:
    return
  name = f"data.{chosen[0]}={settings.data[chosen[0]]!r}"
  off = type(settings.data[chosen[0]])(0)
  if data.image_shape is None:
    raise ConfigError(
      f"{name}: expected {off!r}, as the inputs of {data.name} are no images: "
      f"{shown(data.input_shape)}"
    )
  if data.train.labels.ndim > 1:
    raise ConfigError(
      f"{name}: expected {off!r}, as the labels of {data.name} are {data.train.labels.shape[1:]} "
      "per image and would not change with it"
    )


def phase_examples(settings: Any, role: str, data: Dataset, *, labelled: bool = False) -> Examples:
  """The training examples of the "teacher" or a "student".

  Args:
    settings: a config, of which "data" and "seed" count.
    role: "teacher" or "student".
    data: the data set.
    labelled: leave out examples without labels.

  Raises:
    ConfigError: naming the field, if a class has fewer images than asked for.
  """
  field = "teacher_per_class" if role == "teacher" else "per_class"
  limit, unlabelled = settings.data[field], settings.data.unlabelled
  if not limit:
    return data.train
  try:
    chosen = per_class(data.train, limit, seed=settings.seed)
    if labelled or role == "teacher" or not unlabelled:
      return chosen
    field, limit = "unlabelled", unlabelled
    return with_unlabelled(chosen, data.train, unlabelled, seed=settings.seed)
  except ConfigError as error:
    reason = str(error).partition(": ")[2]
    raise ConfigError(f"data.{field}={limit}: {reason}") from error
