"""The networks that a config names: by architecture, from a bundle, with PyTorch's weights."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.errors import needed_by

with needed_by("jaxkd.networks"):
  import ml_collections

from flax import linen as nn

from jaxkd import bundles, models
from jaxkd.data import Dataset
from jaxkd.errors import ConfigError, one_line
from jaxkd.recipes import Teacher
from jaxkd.types import Output

Trained = tuple[Teacher, Mapping[str, Any] | None]


def create(
  field: str, name: str, data: Dataset, options: Mapping[str, Any], *, dropout: float = 0.0
) -> tuple[nn.Module, Output | tuple[Output, ...]]:
  """A model of that name for this data, and the shapes it returns.

  Args:
    field: of the config, for errors.
    name: one of `models.names()`.
    data: its images and classes.
    options: the model's other fields.
    dropout: of a model that has it; 0 for none.

  Raises:
    ConfigError: for an unknown name, or a model that cannot take these images or has no dropout.
  """
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
  """The teachers, each with its variables if it comes trained.

  Args:
    settings: a config, of which the "teacher" section counts.
    data: what they are to teach.
    options: fields of models that are made here.

  Raises:
    ConfigError: naming the field and what would be accepted.
  """
  own = settings.teacher
  fields = ("bundle", "weights")
  given = {field: [path for path in own[field].split(",") if path] for field in fields}
  if all(given.values()):
    raise ConfigError(
      f"teacher.bundle={own.bundle!r} and teacher.weights={own.weights!r}: expected one of them"
    )
  for field, paths in given.items():
    if paths and own.count not in (1, len(paths)):
      raise ConfigError(
        f"teacher.count={own.count}: expected {len(paths)}, as many as teacher.{field}"
      )
  if given["bundle"]:
    return [_bundled(path, settings, data) for path in given["bundle"]]
  module, output = create("teacher.model", own.model, data, options, dropout=own.dropout)
  teacher = Teacher(module, _one_output("teacher.model", own.model, output), own.model)
  if given["weights"]:
    return [(teacher, _from_torch(path, teacher, data)) for path in given["weights"]]
  return [(teacher, None)] * own.count


def _from_torch(path: str, teacher: Teacher, data: Dataset) -> Mapping[str, Any]:
  """The weights of a teacher that PyTorch trained."""
  try:
    return models.from_torch(path, teacher.module, image_shape=data.image_shape)
  except ConfigError as error:
    raise ConfigError(f"teacher.weights, for teacher.model={teacher.label!r}: {error}") from error


def _bundled(path: str, settings: ml_collections.ConfigDict, data: Dataset) -> Trained:
  """A teacher that comes trained."""
  name = settings.teacher.model
  network, description = bundles.load_bundle(pathlib.Path(path))
  where = f"teacher.bundle={path!r}"
  stored = description.get("model")
  if name not in ("", stored):
    raise ConfigError(
      f"{where} holds a {stored}, but teacher.model={name!r}: set it to that, "
      "or to '' to take what the bundle holds"
    )
  shapes = _shapes("teacher.bundle", path, network.module, data, network.variables)
  output = _one_output("teacher.bundle", path, shapes)
  classes = 0 if output.logits is None else output.logits.shape[-1]
  if classes != data.num_classes:
    raise ConfigError(
      f"{where} predicts {classes} classes, the student {data.num_classes} "
      f"(data set {settings.data.name!r})"
    )
  label = stored or type(network.module).__name__
  return Teacher(network.module, output, label), network.variables


def _shapes(
  field: str, value: str, module: nn.Module, data: Dataset, variables: Any = None
) -> Output | tuple[Output, ...]:
  """What a model returns for this data's images, as shapes; nothing is computed."""
  images = jax.ShapeDtypeStruct((2, *data.image_shape), jnp.float32)
  try:
    if variables is None:
      return _initial_shapes(module, data.image_shape)
    return jax.eval_shape(functools.partial(module.apply, train=False), variables, images)
  except (ValueError, TypeError) as error:
    reason = one_line(error)
    raise ConfigError(f"{field}={value!r} cannot take {data.name}'s images: {reason}") from error


# Those who plan many experiments ask for the same networks again and again, deep ones take seconds.
@functools.lru_cache(maxsize=64)
def _initial_shapes(
  module: nn.Module, image_shape: tuple[int, int, int]
) -> Output | tuple[Output, ...]:
  images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
  return jax.eval_shape(module.init_with_output, jax.random.key(0), images)[0]


def _one_output(field: str, value: str, output: Output | tuple[Output, ...]) -> Output:
  """The shapes of a network that can teach: one with a single output."""
  if isinstance(output, tuple):
    raise ConfigError(f"{field}={value!r} has {len(output)} exits: a teacher needs to have one")
  return output
