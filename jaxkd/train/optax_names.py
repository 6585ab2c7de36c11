"""Optimizers and schedules of optax by name, with their arguments checked before anything compiles.

A name is "optax.lion" or "optax.contrib.muon". Arguments that optax counts in updates (`X_steps`)
may be given in epochs instead, as `X_epochs`.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from jaxkd.errors import ConfigError, one_line, unknown_name

PREFIX = "optax."
_MODULES: Mapping[str, types.ModuleType] = {PREFIX: optax, f"{PREFIX}contrib.": contrib}
# Decay rates of moving averages: at 1 the average never changes.
_RATES = ("b1", "b2", "b3", "decay", "momentum", "rho", "beta")
# Arguments that are functions or trees, which a config cannot hold.
_FUNCTIONS = ("mask", "weight_decay_mask", "trust_ratio_mask", "linesearch", "key")
# The peak of a schedule, which is `learning_rate`; the first of these that a schedule has.
_PEAKS = ("peak_value", "init_value", "value")
# Points of a training at which its learning rate is checked.
_CHECKED = 64


def is_optax(name: str) -> bool:
  """Check whether a name is one of optax, such as "optax.lion"."""
  return isinstance(name, str) and name.startswith(PREFIX)


def optimizer_of(
  name: str, schedule: optax.Schedule, arguments: Mapping[str, Any]
) -> optax.GradientTransformation:
  """Return an optimizer of optax.

  Args:
    name: "optax.NAME" or "optax.contrib.NAME".
    schedule: update number -> learning rate, its first argument.
    arguments: its other arguments: numbers, True or False, texts.

  Raises:
    ConfigError: for a name that optax does not have (with the nearest one), or that is no
      optimizer; for arguments that it does not take, or of another type; for an optimizer that
      needs more than gradients and parameters, such as the value of the loss, or predicts with
      other parameters than those that it updates.
  """
  function = _found("optimizer", name, _is_optimizer)
  if "schedule_free" in name:
    raise ConfigError(
      f"optimizer={name!r}: its predictions need other parameters than those that it updates; "
      "expected an optimizer without schedule_free"
    )
  _check_arguments(name, function, arguments, ("learning_rate",), "learning_rate and schedule")
  try:
    optimizer = function(schedule, **arguments)
    _check_update(optimizer)
  except Exception as error:  # code of optax can raise any type
    given = "".join(f", {key}={value!r}" for key, value in arguments.items())
    raise ConfigError(
      f"optimizer={name!r}{given}: it cannot be used by a step, which gives it a schedule, "
      f"gradients and parameters: {one_line(error)}"
    ) from error
  return optimizer


def takes(name: str, argument: str) -> bool:
  """Check whether an optimizer of optax takes an argument."""
  return argument in inspect.signature(_found("optimizer", name, _is_optimizer)).parameters


def check_schedule(name: str, arguments: Mapping[str, Any]) -> None:
  """Check the name and the names and types of the arguments of `schedule_of`; raises as it does."""
  schedule_of(name, arguments, learning_rate=1.0, epochs=None, steps_per_epoch=1)


def schedule_of(
  name: str,
  arguments: Mapping[str, Any],
  *,
  learning_rate: float,
  epochs: float | None,
  steps_per_epoch: int,
) -> optax.Schedule:
  """Return a schedule of optax: update number -> learning rate.

  Args:
    name: "optax.NAME", such as "optax.cosine_onecycle_schedule".
    arguments: its arguments. `X_steps` and `transition_begin` count updates; `X_epochs` and
      `transition_begin_epochs` give the same in epochs. Its length (`decay_steps`, or else
      `transition_steps`) is all epochs if it is not given. Its peak (`peak_value`, or else
      `init_value` or `value`) is the learning rate and cannot be given; other values are absolute
      learning rates.
    learning_rate: the peak.
    epochs: length of the phase; None only checks the arguments.
    steps_per_epoch: updates per epoch.

  Raises:
    ConfigError: for a name that is no schedule, arguments that it does not take or lacks, and a
      learning rate that is negative or not finite at some update.

  >>> rate = schedule_of("optax.linear_schedule", {"end_value": 0.0},
  ...   learning_rate=0.5, epochs=4, steps_per_epoch=10)
  >>> [round(float(rate(step)), 3) for step in (0, 20, 40)]
  [0.5, 0.25, 0.0]
  """
  function = _found("schedule", name, _is_schedule)
  parameters = inspect.signature(function).parameters
  peak = next((p for p in _PEAKS if p in parameters), "")
  if not peak or any(p in parameters for p in ("interpolate_type", "cosine_kwargs", "schedules")):
    raise ConfigError(f"schedule={name!r}: it is made of other schedules; make it in Python")
  in_updates = _in_updates(name, arguments, parameters, steps_per_epoch)
  length = next((p for p in ("decay_steps", "transition_steps") if p in parameters), "")
  if length and length not in in_updates:
    in_updates[length] = max(1, round((1 if epochs is None else epochs) * steps_per_epoch))
  _check_arguments(name, function, in_updates, (peak,), "learning_rate", _epoch_names(parameters))
  missing = [
    p.name
    for p in parameters.values()
    if p.default is p.empty and p.name not in (peak, *in_updates)
  ]
  if missing:
    raise ConfigError(f"schedule={name!r}: its argument {missing[0]!r} must be given")
  try:
    rate = function(**{peak: learning_rate}, **in_updates)
    if epochs is not None:
      _check_rates(rate, round(epochs * steps_per_epoch))
  except Exception as error:  # code of optax can raise any type
    given = "".join(f", {key}={value!r}" for key, value in arguments.items())
    raise ConfigError(f"schedule={name!r}{given}: {one_line(error)}") from error
  return rate


def _found(what: str, name: str, accepts: Callable[[Any], bool]) -> Callable[..., Any]:
  """Return the function of a name.

  Raises:
    ConfigError: naming similar names, if optax has none of that name or it is another thing.
  """
  prefix = next((p for p in reversed(tuple(_MODULES)) if name.startswith(p)), PREFIX)
  known = _names(prefix, accepts)
  own = name.removeprefix(prefix)
  if own not in known:
    if hasattr(_MODULES[prefix], own):
      raise ConfigError(
        f"{what}={name!r}: optax has it, but it is no {what}; expected one of "
        f"{', '.join(prefix + n for n in known)}"
      )
    raise unknown_name(what, name, [prefix + n for n in known])
  return getattr(_MODULES[prefix], own)


@functools.cache
def _names(prefix: str, accepts: Callable[[Any], bool]) -> tuple[str, ...]:
  module = _MODULES[prefix]
  public = [n for n in sorted(dir(module)) if not n.startswith(("_", "scale_by_", "inject_"))]
  return tuple(n for n in public if accepts(getattr(module, n)))


def _is_optimizer(found: Any) -> bool:
  """Check for a function of a learning rate that returns a gradient transformation."""
  signature = _signature(found)
  if signature is None or next(iter(signature.parameters), "") != "learning_rate":
    return False
  return "GradientTransformation" in str(signature.return_annotation)


def _is_schedule(found: Any) -> bool:
  """Check for a function that returns a schedule."""
  signature = _signature(found)
  if signature is None:
    return False
  made = signature.return_annotation
  return made == optax.Schedule or str(made).endswith("Schedule")


def _signature(found: Any) -> inspect.Signature | None:
  return inspect.signature(found) if inspect.isfunction(found) else None


def _check_arguments(
  name: str,
  function: Callable[..., Any],
  arguments: Mapping[str, Any],
  own: tuple[str, ...],
  field: str,
  others: tuple[str, ...] = (),
) -> None:
  """Raise a ConfigError for an argument that a function does not take, or of another type.

  Args:
    name: name of the function.
    function: the function.
    arguments: arguments by name.
    own: arguments that are set otherwise.
    field: the fields that set them.
    others: further names that are accepted and not in `arguments`.
  """
  parameters = inspect.signature(function).parameters
  free = [p for p in parameters if p not in (*own, *_FUNCTIONS)]
  for argument, value in arguments.items():
    if argument in own:
      raise ConfigError(f"{argument}={value!r}: {name} gets it from {field}")
    if argument in _FUNCTIONS and argument in parameters:
      raise ConfigError(f"{argument}={value!r}: {name} takes a function there; make it in Python")
    if argument not in free:
      raise unknown_name(f"argument of {name}", argument, [*free, *others])
    if wanted := _wrong(argument, value, parameters[argument]):
      raise ConfigError(f"{argument}={value!r}: {name} expects {wanted}")


def _wrong(argument: str, value: Any, parameter: inspect.Parameter) -> str:
  """Return what is expected in place of an argument's value; "" if it fits."""
  if argument == "boundaries_and_scales":
    return "" if isinstance(value, Mapping) else "{update: factor}"
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  default, annotation = parameter.default, str(parameter.annotation)
  if value is None:
    optional = default is None or "None" in annotation or "Optional" in annotation
    return "" if optional else "a value"
  if isinstance(default, bool):
    return "" if isinstance(value, bool) else "True or False"
  if argument.endswith("dtype"):
    return "" if isinstance(value, str) else "the name of a dtype"
  if argument.endswith("_steps") or isinstance(default, int):
    fits = is_number and math.isfinite(value) and value == int(value) and value >= 0
    return "" if fits else "an integer >= 0"
  if isinstance(default, float) or "float" in annotation or argument.endswith("_value"):
    if not is_number or not math.isfinite(value) or value < 0:
      return "a number >= 0"
    return "a number < 1" if argument in _RATES and value >= 1 else ""
  return ""


def _check_update(optimizer: Any) -> None:
  """Raise if an update of two small parameters cannot be traced, or has other shapes than they."""
  if not isinstance(optimizer, optax.GradientTransformation):
    raise TypeError(f"it returns {type(optimizer).__name__}")
  params = {
    "kernel": jax.ShapeDtypeStruct((4, 3), jnp.float32),
    "bias": jax.ShapeDtypeStruct((3,), jnp.float32),
  }
  state = jax.eval_shape(optimizer.init, params)
  updates, after = jax.eval_shape(optimizer.update, params, state, params)
  if jax.tree.map(lambda x: x.shape, updates) != jax.tree.map(lambda x: x.shape, params):
    raise ValueError("its updates do not have the shapes of the parameters")
  if after != state:
    raise ValueError("its state changes its shapes or types")
  if any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(state)):
    raise ValueError("its state has random keys, which a checkpoint cannot hold")


def _epoch_names(parameters: Mapping[str, inspect.Parameter]) -> tuple[str, ...]:
  return tuple(in_epochs for p in parameters if (in_epochs := _in_epochs(p)))


def _in_epochs(parameter: str) -> str:
  """Return the name under which an argument is given in epochs; "" if it counts no updates."""
  if parameter.endswith("_steps"):
    return parameter.removesuffix("steps") + "epochs"
  return "transition_begin_epochs" if parameter == "transition_begin" else ""


def _in_updates(
  name: str,
  arguments: Mapping[str, Any],
  parameters: Mapping[str, inspect.Parameter],
  steps_per_epoch: int,
) -> dict[str, Any]:
  """Return the arguments with those in epochs converted to updates."""
  converted = dict(arguments)
  for parameter in parameters:
    in_epochs = _in_epochs(parameter)
    if in_epochs not in converted or not in_epochs:
      continue
    if parameter in converted:
      raise ConfigError(
        f"{in_epochs}={converted[in_epochs]!r}: expected {parameter} or it, not both"
      )
    value = converted.pop(in_epochs)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**31:
      raise ConfigError(f"{in_epochs}={value!r}: {name} expects a number >= 0")
    converted[parameter] = round(value * steps_per_epoch)
  if isinstance(scales := converted.get("boundaries_and_scales"), Mapping):
    try:
      converted["boundaries_and_scales"] = {int(k): float(v) for k, v in scales.items()}
    except (TypeError, ValueError) as error:
      raise ConfigError(
        f"boundaries_and_scales={dict(scales)!r}: expected {{update: factor}}"
      ) from error
  return converted


def _check_rates(rate: optax.Schedule, updates: int) -> None:
  """Raise if the learning rate is negative or not finite at some of the updates."""
  points = np.unique(np.linspace(0, max(0, updates - 1), _CHECKED).astype(np.int32))
  values = np.broadcast_to(jax.vmap(rate)(jnp.asarray(points)), points.shape)
  for update, value in zip(points.tolist(), values.tolist(), strict=True):
    if not math.isfinite(value) or value < 0:
      raise ValueError(f"its learning rate is {value:g} at update {update}")
