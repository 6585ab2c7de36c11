"""The data set of a config, the examples of a phase, and how its networks see them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxkd.data import (
  DATASETS,
  UNLABELLED,
  Dataset,
  Examples,
  augmentation,
  centre_crop,
  join_unlabelled,
  load,
  load_options,
  normalize,
  per_class,
  validate_dataset,
  with_unlabelled,
)
from jaxkd.data.examples import without_label
from jaxkd.data.keys import fold
from jaxkd.data.multi_label import with_labels
from jaxkd.data.strong import strong_augmentation
from jaxkd.data.unlabelled import labelled_only, with_unlabelled_of
from jaxkd.data.views import with_views
from jaxkd.errors import ConfigError
from jaxkd.runtime.mapping import AXIS_NAME
from jaxkd.shapes import shown
from jaxkd.types import Array, Batch


def dataset(settings: Any, load_data: Callable[..., Dataset] = load) -> Dataset:
  """Load the data set of a config, in the parts that it asks for.

  Args:
    settings: a config, of which "data" and "seed" count.
    load_data: function to load it, such as one with a cache.

  Raises:
    ConfigError: as `jaxkd.data.load` and `validate_dataset`; or if a class has fewer test images
      than asked for.
  """
  own = settings.data
  split_seed = own.get("split_seed", -1)  # missing in configs of earlier runs, as others below
  loaded = load_data(
    own.name,
    directory=own.directory or None,
    validation=own.validation,
    seed=settings.seed if split_seed < 0 else split_seed,
    **load_options(own),
  )
  data = validate_dataset(with_labels(loaded, own.get("labels", "single")))
  if folder := own.get("unlabelled_folder", ""):
    data = join_unlabelled(data, folder, image_size=own.get("image_size", 0))
  few = own.get("test_per_class", 0)
  if not few:
    return data
  try:
    return dataclasses.replace(data, test=per_class(data.test, few, seed=0))  # for every seed
  except ConfigError as error:
    reason = str(error).partition(": ")[2]
    raise ConfigError(f"data.test_per_class={few}: {reason} in the test split") from error


def data_lines(data: Dataset) -> list[str]:
  """Describe data of the user's own in a line: classes, sizes of the splits; none for others."""
  if data.name in DATASETS or not data.class_names:
    return []
  names = data.class_names
  shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
  hidden = int((data.train.labels == UNLABELLED).reshape(len(data.train), -1).all(axis=1).sum())
  sizes = [f"{len(data.train) - hidden} training"]
  sizes += [f"{hidden} unlabelled"] if hidden else []
  sizes += [f"{len(data.validation)} validation"] if data.validation is not None else []
  inputs = "inputs"
  if data.image_shape is not None:
    inputs = "images of " + "x".join(map(str, data.image_shape))
  return [
    f"{data.name}: {len(names)} classes ({shown}); {', '.join(sizes)} and {len(data.test)} test "
    f"{inputs}"
  ]


def data_facts(settings: Any, data: Dataset) -> dict[str, Any]:
  """Return what a bundle's description has besides of data of the user's own.

  Args:
    settings: the config's "data" section.
    data: the data set.
  """
  facts: dict[str, Any] = {}
  if data.class_names:
    facts["class_names"] = list(data.class_names)
  if options := load_options(settings):
    facts["data_options"] = options
  return facts


# Folded into the keys of strong views.
_STRONG = 1000


def training_preparation(
  settings: Any,
  data: Dataset,
  augmentations: Sequence[str] = (),
  partners: Sequence[str] = (),
  strong: Sequence[str] = (),
) -> Callable[[Array, Batch], Batch]:
  """Normalisation and augmentation of training batches, by the config's "data" section.

  Inputs that are no images stay as they are.

  Args:
    settings: a config, of which "data" counts.
    data: the data set.
    augmentations: names of `Batch.views` that are added: the same inputs, augmented with keys of
      their own.
    partners: names of views that batches have (`jaxkd.data.partners`), augmented likewise.
    strong: names of views that are added, with `jaxkd.data.strong` after that augmentation.

  Raises:
    ConfigError: for views together with mixup; for strong views of inputs that are no images of
      one or three channels.
  """
  _check_views(settings, (*augmentations, *partners, *strong))
  if strong and (data.image_shape is None or data.image_shape[-1] not in (1, 3)):
    raise ConfigError(
      f"method.name={settings.method.name!r} needs images of one or three channels for its view "
      f"{strong[0]!r}, and the inputs of {data.name} are {shown(data.input_shape)}"
    )
  if data.image_shape is None:
    return lambda keys, batch: with_views(keys, batch, augmentations, lambda keys, batch: batch)
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

  def seen(keys: Array, batch: Batch) -> Batch:
    return augment(keys, _normalized(batch, data))

  def strongly(keys: Array, batch: Batch) -> Batch:
    weak = seen(keys, batch)
    # No operation of `augment` has this number.
    own = fold(keys, _STRONG)
    images = strong_augmentation(own, weak.inputs, mean=data.mean, std=data.std)
    return dataclasses.replace(weak, inputs=images)

  def prepare(keys: Array, batch: Batch) -> Batch:
    views: Mapping[str, Any] = {}
    if augmentations or batch.views:
      views = with_views(keys, batch, augmentations, seen).views
    if strong:
      unseen = dataclasses.replace(batch, views={})
      views = {**views, **with_views(keys, unseen, strong, strongly).views}
    return dataclasses.replace(seen(keys, batch), views=views)

  return prepare


def _check_views(settings: Any, views: Sequence[str]) -> None:
  """Raise a ConfigError for several views of examples that are mixed with others."""
  if views and settings.data.mixup:
    raise ConfigError(
      f"data.mixup={settings.data.mixup:g}: expected 0 with method.name={settings.method.name!r}, "
      f"as its views {', '.join(map(repr, views))} would be mixed in other shares than the labels"
    )


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
  if data.train.labels.ndim > 1 and not getattr(data.train, "multi_label", False):
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
  some_unlabelled = bool(without_label(data.train).any())
  alone = labelled or role == "teacher"
  chosen = split = labelled_only(data.train) if some_unlabelled else data.train
  try:
    if limit:
      chosen = per_class(split, limit, seed=settings.seed)
    if limit and unlabelled and not alone:
      field, limit = "unlabelled", unlabelled
      chosen = with_unlabelled(chosen, split, unlabelled, seed=settings.seed)
  except ConfigError as error:
    reason = str(error).partition(": ")[2]
    raise ConfigError(f"data.{field}={limit}: {reason}") from error
  if alone or not some_unlabelled:
    return chosen
  return with_unlabelled_of(chosen, data.train)
