"""The models of a config that are not in the registry, and the stages that it taps."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from jaxkd.data import Dataset
from jaxkd.errors import ConfigError, one_line
from jaxkd.models import FromFunction, Tapped, imported, tap
from jaxkd.shapes import InputShape, batched
from jaxkd.types import Output

# A module -> the shapes of its output for two examples, or a ConfigError.
Shapes = Callable[[nn.Module], Any]


def create(
  field: str,
  name: str,
  data: Dataset,
  options: Mapping[str, Any],
  shapes: Shapes,
) -> tuple[nn.Module, Any]:
  """Return a model by its import path or registered name, and the shapes of its output.

  Logits that come without an Output are put into one.

  Args:
    field: config field, for errors.
    name: a path or a registered name.
    data: data set with the number of classes.
    options: other options of the model, of `jaxkd.models.imported.OPTIONS`.
    shapes: function that traces a module.

  Raises:
    ConfigError: naming the field and the value, if the model cannot be imported, called or traced,
      or returns neither an Output nor logits of the data set's classes.
  """
  where = f"{field}={name!r}"
  module = imported.create(where, name, {"num_classes": data.num_classes, **options})
  module, output = with_output(where, module, shapes)
  for one in output if isinstance(output, tuple) else (output,):
    count = one.logits.shape[-1]
    if count != data.num_classes:
      raise ConfigError(
        f"{where} returns {count} logits, {data.name} has {data.num_classes} "
        "classes: expected a callable that takes num_classes"
      )
  return module, output


def with_output(where: str, module: nn.Module, shapes: Shapes) -> tuple[nn.Module, Any]:
  """Return a module `(inputs, train) -> Output`, and the shapes of its output.

  Args:
    where: field and value, the subject of error messages.
    module: the module; a plain array of logits (B, ..., C) is put into an Output, and a mode of
      another name than `train` is set by `jaxkd.models.tap`.
    shapes: function that traces a module for a batch of two examples.

  Raises:
    ConfigError: for any other result, and for one without the axis of the examples.
  """
  if "train" not in inspect.signature(type(module).__call__).parameters:
    module = tap(module, {})
  found = shapes(module)
  if _is_array(found):
    _check_logits(where, found)
    module = tap(module, {})
    found = shapes(module)
  outputs = found if isinstance(found, tuple) and not hasattr(found, "_fields") else (found,)
  for output in outputs:
    if not isinstance(output, Output):
      raise ConfigError(
        f"{where} returns {_described(found)}: expected a jaxkd.types.Output, a tuple with one for "
        "each exit, or logits (B, C) alone"
      )
    if output.logits is None:
      raise ConfigError(f"{where} returns an Output without logits")
    _check_logits(where, output.logits)
    for name, array in {**output.features, **output.preactivations}.items():
      if array.shape[:1] != (2,):
        raise ConfigError(
          f"{where} returns {name!r} of shape {array.shape} for 2 examples: expected the examples "
          "along the first axis"
        )
  return module, found


def _check_logits(where: str, logits: Any) -> None:
  shape = tuple(logits.shape)
  if len(shape) < 2 or shape[0] != 2:
    raise ConfigError(
      f"{where} returns logits of shape {shape} for 2 examples: expected (2, classes), or more "
      "axes between"
    )
  if logits.dtype.kind not in "fV":  # bfloat16 is of kind V
    raise ConfigError(f"{where} returns logits of type {logits.dtype}: expected floats")


def _is_array(value: Any) -> bool:
  return hasattr(value, "shape") and hasattr(value, "dtype")


def _described(value: Any) -> str:
  if isinstance(value, tuple | list):
    return f"a {type(value).__name__} of {', '.join(type(item).__name__ for item in value)}"
  if isinstance(value, Mapping):
    return f"a mapping with {', '.join(map(repr, value))}"
  return f"a {type(value).__name__}"


def taps_of(section: Any, role: str) -> Taps:
  """Return the stages that a section of a config taps, from its fields "tap" and so on.

  Args:
    section: the section "student" or "teacher"; one of an earlier version has no such fields.
    role: its name, for errors.

  Raises:
    ConfigError: for a text that is not "STAGE=PATH,STAGE=PATH", or a stage that is there twice.
  """
  fields = ("tap", "tap_preactivations")
  texts = {field: section.get(field, "") for field in fields}
  parsed = [parse(f"{role}.{field}", text) for field, text in texts.items()]
  if parsed[1] and set(parsed[1]) - set(parsed[0]):
    missing = sorted(set(parsed[1]) - set(parsed[0]))[0]
    raise ConfigError(
      f"{role}.tap_preactivations={texts['tap_preactivations']!r}: there is no stage {missing!r} "
      f"in {role}.tap={texts['tap']!r}"
    )
  return Taps(role, *parsed)


def parse(where: str, text: str) -> dict[str, str]:
  """Return "STAGE=PATH,STAGE=PATH" as stage -> path.

  >>> parse("student.tap", "stage1=conv1, pooled=classifier:input")
  {'stage1': 'conv1', 'pooled': 'classifier:input'}
  """
  stages: dict[str, str] = {}
  for part in filter(str.strip, text.split(",")):
    stage, equals, path = (word.strip() for word in part.partition("="))
    if not (stage and equals and path) or not stage.isidentifier():
      raise ConfigError(
        f"{where}={text!r}: {part.strip()!r}: expected STAGE=PATH,STAGE=PATH, such as "
        "stage1=conv1,pooled=classifier:input"
      )
    if stage in stages:
      raise ConfigError(f"{where}={text!r}: stage {stage!r} is there twice")
    stages[stage] = path
  return stages


@dataclasses.dataclass(frozen=True)
class Taps:
  """The stages that a section of a config taps.

  Attributes:
    role: name of the section.
    features: stage -> path of its features; empty taps nothing.
    preactivations: stage -> path of its preactivations.
  """

  role: str
  features: Mapping[str, str]
  preactivations: Mapping[str, str]

  def of(self, module: nn.Module, shapes: Shapes) -> tuple[nn.Module, Any]:
    """Return the module with these stages, and the shapes of its output.

    Args:
      module: any linen module; the stages of one that is tapped already are replaced.
      shapes: function that traces a module.

    Raises:
      ConfigError: naming the field, for a path that does not exist or is no array of features, and
        for a model whose parts cannot be tapped.
    """
    where = f"{self.role}.tap"
    inner: Any = module
    options: dict[str, Any] = {}
    if isinstance(module, Tapped):
      inner, options = module.module, {"mode": module.mode, "logits": module.logits}
    if isinstance(inner, FromFunction):
      raise ConfigError(f"{where}: a function has no submodules: expected '', or an Output from it")
    try:
      tapped = tap(inner, self.features, self.preactivations, **options)
      return with_output(where, tapped, shapes)
    except ConfigError as error:
      if str(error).startswith(where):
        raise
      raise ConfigError(f"{where}: {error}") from error


def tapped(
  section: Any, module: nn.Module, output: Any, data: Dataset
) -> tuple[nn.Module, Output | tuple[Output, ...]]:
  """Return a student with the stages that its section taps, and the shapes of its output.

  Args:
    section: the section "student" of a config.
    module: the student.
    output: the shapes it returns; they stay if the section taps nothing.
    data: data set with the shape of inputs.

  Raises:
    ConfigError: as `Taps.of`.
  """
  taps = taps_of(section, "student")
  if not taps.features:
    return module, output
  return taps.of(module, functools.partial(initial_shapes, "student.tap", data.input_shape))


def initial_shapes(where: str, shape: InputShape, module: nn.Module) -> Any:
  """Return the shapes of a new module's output for two examples, without computing anything."""
  inputs = batched(shape, (2,))
  try:
    return jax.eval_shape(module.init_with_output, jax.random.key(0), inputs)[0]
  except Exception as error:  # the module's code can raise any type
    raise ConfigError(f"{where}: {one_line(error)}") from error


def trained_shapes(where: str, variables: Any, shape: InputShape, module: nn.Module) -> Any:
  """Return the shapes of a trained module's output for two examples."""
  run = functools.partial(module.apply, train=False)
  try:
    return jax.eval_shape(run, variables, batched(shape, (2,)))
  except Exception as error:  # the module's code can raise any type
    raise ConfigError(f"{where}: {one_line(error)}") from error


def allowed(section: Any) -> tuple[str, ...]:
  """Return the packages whose code a bundle of a section may name: those that the config names."""
  named = [name.strip() for name in section.get("allow_import", "").split(",") if name.strip()]
  if imported.is_path(section.model):
    named.append(section.model.rpartition(":")[0])
  return tuple(named)
