"""Trained weights from which a student starts: `student.bundle` and `student.weights`."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from jaxkd import models
from jaxkd.data import Dataset
from jaxkd.errors import ConfigError, one_line
from jaxkd.experiment import own_models
from jaxkd.experiment.stated_images import images_of_run, shown
from jaxkd.export import bundles
from jaxkd.models.compose.quantized import unrounded, with_ranges
from jaxkd.shapes import batched
from jaxkd.train import Phase
from jaxkd.train.start import example_batch
from jaxkd.types import Output

_PARTICIPANT = "student"


class Start(NamedTuple):
  """The weights from which a student starts.

  Attributes:
    field: config field and value that name them, for errors and notes.
    variables: variables of the student's module.
    note: a line for the reader.
  """

  field: str
  variables: Mapping[str, Any]
  note: str


def student_start(settings: Any, data: Dataset, student: nn.Module) -> Start | None:
  """Return the weights from which the student of a config starts; None if it is drawn at random.

  Args:
    settings: a config; its section "student" is used.
    data: data set of the run.
    student: the student's module.

  Raises:
    ConfigError: naming the field, for a file that cannot be read, and for weights of another
      architecture or for other classes.
  """
  section = settings.student
  if isinstance(student, models.Quantized):
    start = student_start(settings, data, student.network)
    if start is None:
      return None
    ranges = with_ranges(student, start.variables, batched(data.input_shape, (1,)))
    return start._replace(variables=ranges)
  if section.get("bundle"):
    return _of_bundle(section, data, student)
  if section.get("weights"):
    return _of_torch(section, data, student)
  return None


def started(phase: Phase, start: Start | None) -> Phase:
  """Return a student's phase that starts from given weights.

  A phase that inherits its student from an earlier one, or has none, stays as it is.

  Raises:
    ConfigError: naming the field, if the phase trains the student in another form: as peers, or as
      a part of a larger network.
  """
  if start is None or _PARTICIPANT in phase.inherit:
    return phase
  drawn = jax.eval_shape(phase.scheme.init, jax.random.key(0), example_batch(phase))
  if _PARTICIPANT in drawn and _shapes_of(drawn[_PARTICIPANT]) == _shapes_of(start.variables):
    given = {**phase.given, _PARTICIPANT: start.variables}
    return dataclasses.replace(phase, given=given, notes=(start.note, *phase.notes))
  if phase.reported:
    raise ConfigError(
      f"{start.field}: expected '' with phase {phase.name!r} of this method, which trains the "
      f"student as a part of {', '.join(sorted(drawn))}"
    )
  return phase


def _of_bundle(section: Any, data: Dataset, student: nn.Module) -> Start:
  path = section.bundle
  field = f"student.bundle={path!r}"
  try:
    network, about = bundles.load_bundle(pathlib.Path(path), allow=own_models.allowed(section))
  except ConfigError as error:
    raise ConfigError(f"{field}: {error}") from error
  if isinstance(network.module, models.Quantized):
    network = unrounded(network.module, network.variables)._replace(
      preprocessing=network.preprocessing
    )
  ours, theirs = _untapped(student), _untapped(network.module)
  stored = about.get("model") or type(theirs).__name__
  if stored != section.model and type(ours) is not type(theirs):
    raise ConfigError(
      f"{field} holds a {stored}, but student.model={section.model!r}: expected weights of that"
    )
  _check_classes(field, _classes_of(network, data), data)
  _check_shapes(field, section.model, student, network.variables, data)
  note = f"it starts from {field}"
  images = images_of_run(data)
  if network.preprocessing and images and network.preprocessing != images:
    note += f", trained on images of {shown(network.preprocessing)}; here {shown(images)}"
  return Start(field, dict(network.variables), note)


def _of_torch(section: Any, data: Dataset, student: nn.Module) -> Start:
  path, module = section.weights, _untapped(student)
  field, shape = f"student.weights={path!r}", data.input_shape
  try:
    try:
      variables = models.from_torch(path, module, image_shape=shape)
    except ConfigError:
      if "num_classes" in getattr(type(module), "__dataclass_fields__", {}):
        resized = lambda classes: module.clone(num_classes=classes)  # noqa: E731
        _check_classes(field, models.classes_in(path, resized, image_shape=shape), data)
      raise
  except ConfigError as error:
    reason = str(error)
    if not reason.startswith(field):
      reason = f"{field}, for student.model={section.model!r}: {reason}"
    raise ConfigError(reason) from error
  _check_shapes(field, section.model, student, variables, data)
  return Start(field, dict(variables), f"it starts from {field}")


def _check_classes(field: str, count: int | None, data: Dataset) -> None:
  if count not in (None, data.num_classes):
    raise ConfigError(
      f"{field} predicts {count} classes, {data.name} has {data.num_classes}: expected weights for "
      "the classes of the data set"
    )


def _classes_of(network: Any, data: Dataset) -> int | None:
  """Return the number of classes that a network predicts; None if it cannot be traced."""
  try:
    inputs = batched(data.input_shape, (2,))
    apply = functools.partial(network.module.apply, train=False)
    output = jax.eval_shape(apply, network.variables, inputs)
  except Exception:  # the module's code can raise any type; the shapes then say what differs
    return None
  last = output[-1] if isinstance(output, tuple | list) else output
  logits = last.logits if isinstance(last, Output) else last
  return None if logits is None else int(logits.shape[-1])


def _check_shapes(
  field: str, model: str, student: nn.Module, variables: Mapping[str, Any], data: Dataset
) -> None:
  """Raise a ConfigError that names the first variable whose shape is not the student's."""
  inputs = batched(data.input_shape, (2,))
  try:
    drawn = jax.eval_shape(student.init, jax.random.key(0), inputs)
  except Exception as error:  # the module's code can raise any type
    raise ConfigError(f"student.model={model!r}: {one_line(error)}") from error
  want, have = _shapes_of(drawn), _shapes_of(variables)
  for path in sorted(want.keys() | have.keys()):
    if want.get(path) != have.get(path):
      raise ConfigError(
        f"{field} is of another architecture than student.model={model!r}: at {path} it has shape "
        f"{have.get(path, 'nothing')}, the model needs {want.get(path, 'nothing')}"
      )


def _shapes_of(variables: Any) -> dict[str, tuple[int, ...]]:
  return {
    jax.tree_util.keystr(path): tuple(leaf.shape)
    for path, leaf in jax.tree.leaves_with_path(variables)
  }


def _untapped(module: nn.Module) -> nn.Module:
  return module.module if isinstance(module, models.Tapped) else module
