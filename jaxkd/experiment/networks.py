"""The networks that a config names: new models, bundles, and models with PyTorch weights."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
from flax import linen as nn

from jaxkd.errors import needed_by

with needed_by("jaxkd.experiment.networks"):
  import ml_collections


from jaxkd import models
from jaxkd.data import Dataset
from jaxkd.errors import ConfigError, one_line
from jaxkd.experiment import own_models
from jaxkd.experiment.new_head import fine_tuned
from jaxkd.experiment.stated_images import StatedImages, images_of_files, shown
from jaxkd.export import bundles
from jaxkd.methods import Teacher
from jaxkd.preprocessing import Converted, as_trained
from jaxkd.shapes import batched
from jaxkd.types import Network, Output

Trained = tuple[Teacher, Mapping[str, Any] | None]


def create(
  field: str, name: str, data: Dataset, options: Mapping[str, Any], *, dropout: float = 0.0
) -> tuple[nn.Module, Output | tuple[Output, ...]]:
  """Return a model for a data set, and the shapes of its output.

  Args:
    field: config field, for errors.
    name: one of `models.names()`, or an import path.
    data: data set with the shape of images and the number of classes.
    options: other fields of the model.
    dropout: dropout rate of a model that has dropout; 0 is none.

  Raises:
    ConfigError: for an unknown name, or a model that cannot take these images or has no dropout.
  """
  if models.imported.is_own(name):
    shapes = functools.partial(_shapes, field, name, data=data)
    return own_models.create(field, name, data, {**options, "dropout": dropout}, shapes)
  module = models.create(name, num_classes=data.num_classes, **options)
  if dropout:
    if not hasattr(module, "dropout"):
      able = [n for n in models.names() if hasattr(models.create(n, num_classes=1), "dropout")]
      section = field.partition(".")[0]
      raise ConfigError(
        f"{section}.dropout={dropout:g}: expected 0.0, as {field}={name!r} has no dropout; these "
        f"have: {', '.join(able)}"
      )
    module = module.clone(dropout=dropout)
  return module, _shapes(field, name, module, data)


def teachers(
  settings: ml_collections.ConfigDict, data: Dataset, options: Mapping[str, Any]
) -> list[Trained]:
  """Return the teachers, each with its variables if it is already trained.

  A trained teacher may predict other classes than those of the data set. Its images are
  converted to those that it was trained on.

  Args:
    settings: a config; its section "teacher" is used.
    data: data set of the run.
    options: fields of models that are created here.

  Raises:
    ConfigError: naming the field and the accepted values.
  """
  section = settings.teacher
  fields = ("bundle", "weights")
  given = {field: [path for path in section[field].split(",") if path] for field in fields}
  for field, paths in given.items():
    if paths and section.count not in (1, len(paths)):
      raise ConfigError(
        f"teacher.count={section.count}: expected {len(paths)}, as many as teacher.{field}"
      )
  paths, read = given["bundle"] or given["weights"], _bundled if given["bundle"] else _from_torch
  if given["bundle"] and data.image_shape is None:
    found = [_bundled_of_inputs(path, section, data) for path in paths]
    return [fine_tuned(*one, settings, data, options) for one in found]
  if paths:
    images = images_of_files(section, data, len(paths))
    found = [
      read(path, chosen, settings, data, options)
      for path, chosen in zip(paths, images, strict=True)
    ]
    return [fine_tuned(*one, settings, data, options) for one in found]
  name = section.model
  module, output = create("teacher.model", name, data, options, dropout=section.dropout)
  output = _one_output("teacher.model", name, output)
  return [(Teacher(module, output, name, f"teacher.model={name!r}"), None)] * section.count


def _from_torch(
  path: str,
  images: StatedImages,
  settings: ml_collections.ConfigDict,
  data: Dataset,
  options: Mapping[str, Any],
) -> Trained:
  """Return a teacher with weights from a file of PyTorch."""
  name, dropout = settings.teacher.model, settings.teacher.dropout
  field, part = "teacher.weights", settings.teacher.weights_part or None
  published = models.published_preprocessing(name)
  # The published preprocessing does not apply to images of another number of channels.
  same = published is not None and len(published.mean) == len(images.given.mean)
  usual = published if same else None
  wanted = images.over(usual or images.given)
  seen = dataclasses.replace(data, image_shape=wanted.image_shape)
  module, output = create("teacher.model", name, seen, options, dropout=dropout)
  shape = wanted.image_shape
  try:
    try:
      variables = models.from_torch(path, module, image_shape=shape, part=part)
    except ConfigError:
      if "num_classes" not in getattr(type(module), "__dataclass_fields__", {}):
        raise
      count = models.classes_in(
        path, lambda classes: module.clone(num_classes=classes), image_shape=shape, part=part
      )
      if count in (None, data.num_classes):
        raise
      seen = dataclasses.replace(seen, num_classes=count)
      module, output = create("teacher.model", name, seen, options, dropout=dropout)
      variables = models.from_torch(path, module, image_shape=shape, part=part)
  except ConfigError as error:
    chosen = f" and teacher.weights_part={part!r}" if part else ""
    raise ConfigError(f"{field}, for teacher.model={name!r}{chosen}: {error}") from error
  output = _one_output("teacher.model", name, output)
  network = Network(module, variables, wanted)
  return as_teacher(f"{field}={path!r}", network, output, name, images, data), variables


def _bundled(
  path: str,
  images: StatedImages,
  settings: ml_collections.ConfigDict,
  data: Dataset,
  options: Mapping[str, Any],
) -> Trained:
  """Return a teacher from a bundle."""
  name = settings.teacher.model
  network, description = bundles.load_bundle(
    pathlib.Path(path), allow=own_models.allowed(settings.teacher)
  )
  where = f"teacher.bundle={path!r}"
  stored = description.get("model")
  _check_model(where, stored, name)
  if "inputs" in description:
    raise ConfigError(f"{where} takes no images, and those of {data.name} are")
  height, width, channels = (int(size) for size in description["image_shape"])
  if channels != len(images.given.mean):
    raise ConfigError(
      f"{where} takes images of {channels} channels, those of {data.name} have "
      f"{len(images.given.mean)}: expected a network of {len(images.given.mean)}"
    )
  given = images.given
  stored_images = network.preprocessing or dataclasses.replace(given, image_size=(height, width))
  wanted = images.over(stored_images)
  seen = dataclasses.replace(data, image_shape=wanted.image_shape)
  shapes = _shapes("teacher.bundle", path, network.module, seen, network.variables)
  output = _one_output("teacher.bundle", path, shapes)
  label = stored or type(network.module).__name__
  teacher = as_teacher(
    where, network._replace(preprocessing=wanted), output, label, images, data, description
  )
  if network.preprocessing is None and not (images.mean and images.std):
    assumed = (
      f"{where} does not say which mean and std its images had: those of {data.name} are assumed; "
      "teacher.mean and teacher.std set others"
    )
    teacher = dataclasses.replace(teacher, notes=(assumed, *teacher.notes))
  return teacher, network.variables


def _bundled_of_inputs(path: str, section: ml_collections.ConfigDict, data: Dataset) -> Trained:
  """Return a teacher from a bundle, for inputs that are no images and are not converted."""
  network, description = bundles.load_bundle(pathlib.Path(path), allow=own_models.allowed(section))
  where, stored = f"teacher.bundle={path!r}", description.get("model")
  _check_model(where, stored, section.model)
  if "inputs" not in description:
    raise ConfigError(f"{where} takes images, and the inputs of {data.name} are none")
  shapes = _shapes("teacher.bundle", path, network.module, data, network.variables)
  output = _one_output("teacher.bundle", path, shapes)
  accuracy = _accuracy(description.get("test_accuracy"))
  label = stored or type(network.module).__name__
  return Teacher(network.module, output, label, where, None, accuracy), network.variables


def _check_model(where: str, stored: Any, name: str) -> None:
  """Raise a ConfigError if a bundle holds another model than teacher.model names."""
  if name not in ("", stored):
    raise ConfigError(
      f"{where} holds a {stored}, but teacher.model={name!r}: set it to that, "
      "or to '' to take what the bundle holds"
    )


def as_teacher(
  field: str,
  network: Network,
  output: Output,
  label: str,
  images: StatedImages,
  data: Dataset,
  description: Mapping[str, Any] = MappingProxyType({}),
) -> Teacher:
  """Return a trained teacher, with conversion of its images if they differ from the run's."""
  model = as_trained(network, images.given)
  converted = model if isinstance(model, Converted) else None
  notes = [f"its images are converted to {shown(converted.wanted)}"] if converted else []
  accuracy = _accuracy(description.get("test_accuracy"))
  teacher = Teacher(network.module, output, label, field, converted, accuracy)
  if teacher.num_classes != data.num_classes:
    notes.append(
      f"it predicts {teacher.num_classes} classes, and {data.name} has {data.num_classes}: it is "
      "not scored"
    )
  return dataclasses.replace(teacher, notes=tuple(notes))


def _accuracy(value: Any) -> float | None:
  """Return a description's value as a float if it is an accuracy in 0..1, else None."""
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return float(value) if number and 0 <= value <= 1 else None


def _shapes(
  field: str, value: str, module: nn.Module, data: Dataset, variables: Any = None
) -> Output | tuple[Output, ...]:
  """Return the shapes of a model's output for a data set's images, without computing anything."""
  inputs = batched(data.input_shape, (2,))
  try:
    if variables is None:
      leaves, structure = jax.tree.flatten(inputs)
      hashable = models.imported.is_hashable(module)
      traced = _initial_shapes if hashable else _initial_shapes.__wrapped__
      return traced(module, tuple(leaves), structure)
    return jax.eval_shape(functools.partial(module.apply, train=False), variables, inputs)
  except Exception as error:  # the module's code can raise any type
    reason, kind = one_line(error), "inputs" if data.image_shape is None else "images"
    raise ConfigError(f"{field}={value!r} cannot take {data.name}'s {kind}: {reason}") from error


# A plan of many experiments needs the same networks repeatedly, and deep ones take seconds.
@functools.lru_cache(maxsize=64)
def _initial_shapes(
  module: nn.Module, leaves: tuple[jax.ShapeDtypeStruct, ...], structure: Any
) -> Output | tuple[Output, ...]:
  inputs = jax.tree.unflatten(structure, leaves)
  return jax.eval_shape(module.init_with_output, jax.random.key(0), inputs)[0]


def _one_output(field: str, value: str, output: Output | tuple[Output, ...]) -> Output:
  """Return the output shapes of a teacher, which must have a single output."""
  if isinstance(output, tuple):
    raise ConfigError(f"{field}={value!r} has {len(output)} exits: a teacher needs to have one")
  return output
