"""The teachers of a config, and their phases: networks, functions and logits in files."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flax.core import unfreeze

from jaxkd.errors import needed_by

with needed_by("jaxkd.experiment.teachers"):
  import ml_collections


from jaxkd import methods
from jaxkd.data import Dataset
from jaxkd.errors import ConfigError
from jaxkd.experiment import networks
from jaxkd.experiment.given import name_of
from jaxkd.experiment.own_models import (
  Taps,
  initial_shapes,
  taps_of,
  trained_shapes,
  with_output,
)
from jaxkd.experiment.stated_images import StatedImages, images_of_files, images_of_run
from jaxkd.experiment.stored_teacher import stored_teacher
from jaxkd.export import architectures, stablehlo
from jaxkd.methods.base import PhaseSpec, Teacher
from jaxkd.models import imported
from jaxkd.networks import initialize
from jaxkd.preprocessing import Converted
from jaxkd.shapes import InputShape, shown
from jaxkd.tables import Table
from jaxkd.train import Expected, Phase
from jaxkd.types import Array, Aux, Batch, Network, Output, Participants, Scheme

Trained = tuple[Teacher, Mapping[str, Any] | None]

# Hint for a trained teacher whose accuracy is at chance.
_HINT = (
  "check that its images and classes are those that it was trained on (teacher.mean, teacher.std, "
  "teacher.image_size, data.name)"
)


def teachers_of(
  settings: ml_collections.ConfigDict,
  data: Dataset,
  options: Mapping[str, Any],
  ready: Sequence[Network] = (),
) -> list[Trained]:
  """Return the teachers of a config, each with its variables if it is already trained.

  They are `jaxkd.experiment.networks.teachers`, and besides those: a file of logits
  (`teacher.logits`), functions in files (`teacher.stablehlo`), and the Network that the callable of
  `teacher.model` returns. Their stages are those of `teacher.tap`.

  Args:
    settings: a config; its section "teacher" is used.
    data: data set of the run.
    options: fields of models that are created here.
    ready: trained networks of the program, in place of those of the config.

  Raises:
    ConfigError: naming the field and the accepted values.
  """
  section = settings.teacher
  found: list[Trained] | None = None
  if ready:
    found = [_ready(network, data) for network in ready]
  elif section.logits:
    found = [stored_teacher(settings, data)]
  elif section.stablehlo:
    found = _from_files(settings, data)
  elif not (section.bundle or section.weights) and imported.is_own(section.model):
    found = _from_callable(settings, data, options)
  if found is None:
    found = networks.teachers(settings, data, options)
  taps = taps_of(section, "teacher")
  return [_tapped(one, taps, data) for one in found] if taps.features else found


def _ready(network: Network, data: Dataset) -> Trained:
  """Return a trained network of the program as a teacher."""
  where, name = f"teacher {type(network.module).__name__}", name_of(*network[:2])
  images = images_of_run(data)
  if images is None:
    return _of_inputs(where, network, name, data)
  return _trained(where, network, name, StatedImages(images), data)


def _from_files(settings: ml_collections.ConfigDict, data: Dataset) -> list[Trained]:
  """Return the teachers of exported functions, which `teacher.stablehlo` names."""
  section = settings.teacher
  paths = [path for path in section.stablehlo.split(",") if path]
  if section.count not in (1, len(paths)):
    raise ConfigError(
      f"teacher.count={section.count}: expected {len(paths)}, as many as teacher.stablehlo"
    )
  found = []
  for path, images in zip(paths, images_of_files(section, data, len(paths)), strict=True):
    where = f"teacher.stablehlo={path!r}"
    try:
      network = stablehlo.load_network(pathlib.Path(path), images.given)
    except ConfigError as error:
      raise ConfigError(f"{where}: {error}") from error
    if (images.mean or images.std or images.image_size) and stablehlo.takes_pixels(network):
      raise ConfigError(
        f"{where} takes pixels of 0..255 and a fixed size: expected () of teacher.mean and "
        "teacher.std, and teacher.image_size=0"
      )
    found.append(_trained(where, network, pathlib.Path(path).stem, images, data))
  return found


def _from_callable(
  settings: ml_collections.ConfigDict, data: Dataset, options: Mapping[str, Any]
) -> list[Trained] | None:
  """Return the teachers of a callable that returns a Network or several; None for a module."""
  section, name = settings.teacher, settings.teacher.model
  where = f"teacher.model={name!r}"
  asked = {"num_classes": data.num_classes, **options}
  asked |= {"dropout": section.dropout} if section.dropout else {}
  made = imported.call(where, imported.find(where, name), asked)
  found = [made] if isinstance(made, Network) else made
  several = isinstance(found, list | tuple) and all(isinstance(x, Network) for x in found)
  if not several or not found:
    for field, unset in (("mean", ()), ("std", ()), ("image_size", 0)):
      if section[field] != unset:
        raise ConfigError(
          f"teacher.{field}={section[field]}: expected {unset}, as {where} returns no trained "
          "Network and sees the images of the run"
        )
    return None
  if section.count not in (1, len(found)):
    raise ConfigError(
      f"teacher.count={section.count}: expected {len(found)}, as many as {where} returns"
    )
  if data.image_shape is None:
    return [_of_inputs(where, one, name, data) for one in found]
  images = images_of_files(section, data, len(found))
  return [_trained(where, one, name, seen, data) for one, seen in zip(found, images, strict=True)]


def _trained(
  where: str, network: Network, label: str, images: StatedImages, data: Dataset
) -> Trained:
  """Return a trained network as a teacher, with conversion of its images if needed."""
  usual = network.preprocessing or images.given
  channels = len(images.given.mean)
  if len(usual.mean) != channels:
    raise ConfigError(
      f"{where} takes images of {len(usual.mean)} channels, those of {data.name} have {channels}"
    )
  wanted = images.over(usual)
  network, output = _with_output(where, network, wanted.image_shape)
  network = network._replace(preprocessing=wanted)
  teacher = networks.as_teacher(where, network, output, label, images, data)
  return _noted(teacher), network.variables


def _of_inputs(where: str, network: Network, label: str, data: Dataset) -> Trained:
  """Return a trained network as a teacher, for inputs that are no images."""
  if network.preprocessing is not None:
    raise ConfigError(f"{where} takes images, and the inputs of {data.name} are none")
  network, output = _with_output(where, network, data.input_shape)
  return _noted(Teacher(network.module, output, label, where)), network.variables


def _with_output(where: str, network: Network, shape: InputShape) -> tuple[Network, Output]:
  """Return a network whose module returns one Output, and the shapes of it."""
  if not isinstance(network.variables, Mapping):
    raise ConfigError(
      f"{where}: its variables are a {type(network.variables).__name__}, expected the variables of "
      "the module, {'params': ...}"
    )
  variables = {"params": {}, **unfreeze(dict(network.variables))}
  module, output = with_output(
    where,
    network.module,
    functools.partial(trained_shapes, f"{where} cannot take {shown(shape)}", variables, shape),
  )
  if isinstance(output, tuple):
    raise ConfigError(f"{where} has {len(output)} exits: a teacher needs to have one")
  return Network(module, variables, network.preprocessing), output


def _noted(teacher: Teacher) -> Teacher:
  """Return the teacher with a note if a bundle cannot hold its architecture."""
  if not (why := architectures.why_not(teacher.module)):
    return teacher
  note = f"it is not written as a bundle: {why}"
  return dataclasses.replace(teacher, notes=(*teacher.notes, note))


def _tapped(trained: Trained, taps: Taps, data: Dataset) -> Trained:
  teacher, variables = trained
  shape = data.input_shape
  if teacher.converted is not None:
    shape = teacher.converted.wanted.image_shape

  if variables is None:
    shapes: Any = functools.partial(initial_shapes, "teacher.tap", shape)
  else:
    shapes = functools.partial(trained_shapes, "teacher.tap", variables, shape)
  module, output = taps.of(teacher.module, shapes)
  converted = teacher.converted
  if isinstance(converted, Converted):
    converted = dataclasses.replace(converted, module=module)
  changed = dataclasses.replace(teacher, module=module, output=output, converted=converted)
  return changed, variables


def teacher_spec(name: str, teacher: Teacher, settings: Any) -> PhaseSpec:
  """Return the spec of one teacher's phase.

  Args:
    name: participant, "teacher" or "teacher_N".
    teacher: the teacher.
    settings: a config.
  """
  stored = isinstance(teacher.module, Table)
  scheme = (
    _stored(name, teacher.module) if stored else methods.supervised(teacher.model, participant=name)
  )
  return PhaseSpec(
    name,
    scheme,
    epochs=settings.teacher.finetune_epochs or None,
    learning_rate=settings.teacher.finetune_learning_rate or None,
    seed_offset=int(name.partition("_")[2] or 0),
    reported="" if stored else name,
    label=teacher.label,
    role="teacher",
  )


def with_variables(
  phase: Phase, teacher: Teacher, variables: Mapping[str, Any], settings: Any, data: Dataset
) -> Phase:
  """Return a teacher's phase with the variables it comes with; without epochs, or fine-tuning.

  A teacher that is not fine-tuned is scored like any other, where the config says so and its
  classes are the data's.
  """
  phase = dataclasses.replace(phase, given={phase.name: variables}, notes=teacher.notes)
  if settings.teacher.finetune_epochs:
    return phase
  comparable = teacher.num_classes == data.num_classes and not isinstance(teacher.module, Table)
  return dataclasses.replace(
    phase,
    epochs=0,
    reported=phase.name if comparable and settings.teacher.rescore else "",
    expected=Expected(phase.name, data.num_classes, teacher.accuracy, _HINT)
    if comparable
    else None,
  )


def with_tables(phase: Phase, teachers: Mapping[str, Teacher]) -> Phase:
  """Return a student's phase with the tables of the teachers that it inherits."""
  tables = {
    name: teacher.module
    for name, teacher in teachers.items()
    if isinstance(teacher.module, Table) and phase.inherit.get(name) == f"{name}/{name}"
  }
  return dataclasses.replace(phase, tables=tables)


def _stored(name: str, table: Table) -> Scheme:
  """Return the scheme of a table, in which nothing learns or predicts."""

  def init(rng: Array, batch: Batch) -> Participants:
    return {name: initialize(table, rng, name, batch.inputs)}

  def loss(*_: Any) -> tuple[Array, Aux]:
    raise TypeError(f"{name!r} has stored logits: its phase has no epochs")

  return Scheme(init, lambda *_: None, loss, lambda *_: {}, (), lambda _: {})
