"""The arguments of `jaxkd.distill` as a config, networks without a name in it, and data."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from jaxkd.errors import needed_by

with needed_by("jaxkd.distill"):
  import ml_collections

from jaxkd import methods, models
from jaxkd.data import Dataset, check_name, load
from jaxkd.errors import ConfigError, one_line, unknown_name
from jaxkd.experiment import config
from jaxkd.experiment.given import Given, data_set, name_of
from jaxkd.fields import Field
from jaxkd.types import Network

# Option -> the fields that it sets.
OPTIONS: Mapping[str, tuple[str, ...]] = {
  "epochs": ("student.epochs", "teacher.epochs"),
  "batch_size": ("batch_size",),
  "learning_rate": ("student.learning_rate", "teacher.learning_rate"),
  "seed": ("seed",),
}
# Fields of "teacher" that name a trained one.
_TRAINED = ("bundle", "weights", "stablehlo", "logits")
# Fraction of all examples of arrays that is held out for the test score.
_TEST = 0.2
_EPOCHS = 30


def settings_of(
  student: Any,
  teacher: Any,
  data: Any,
  method: str,
  changes: Mapping[str, Any],
  options: Mapping[str, Any],
) -> tuple[ml_collections.ConfigDict, Given, Callable[..., Dataset]]:
  """Return the config of a call, checked, its networks, and the function that loads its data.

  Args:
    student: as for `jaxkd.distill`.
    teacher: likewise.
    data: likewise.
    method: likewise.
    changes: path of a field -> value.
    options: of OPTIONS.

  Raises:
    ConfigError: naming the argument or field.
  """
  if not isinstance(method, str):
    raise ConfigError(f"method={method!r}: expected a name, one of {', '.join(methods.METHODS)}")
  if method == "teacher":
    raise ConfigError("method='teacher' trains no student: expected another method")
  settings = config.base_config(method)
  settings.baseline = False
  for section in (settings.student, settings.teacher):
    section.schedule, section.epochs = "cosine", _EPOCHS
  for name, value in options.items():
    if name not in OPTIONS:
      raise unknown_name("option of distill", name, [*OPTIONS, "config", "workdir", "console"])
    for path in OPTIONS[name]:
      _set(settings, path, value, name)
  for path, value in changes.items():
    _set(settings, path, value, f"config: {path}")
  given = Given(_student(settings, student), _teachers(settings, teacher, method))
  load_data = _data(settings, data)
  config.check_config(settings)
  return settings, given, load_data


def _set(settings: ml_collections.ConfigDict, path: str, value: Any, named: str) -> None:
  """Set a field of a config.

  Raises:
    ConfigError: for an unknown field, and a value that it does not accept.
  """
  known: Any = config.fields(settings.method.name)
  section: Any = settings
  *parents, last = str(path).split(".")
  for number, part in enumerate([*parents, last]):
    if not isinstance(known, Mapping) or part not in known:
      raise unknown_name("field of the config", path, _paths(config.fields(settings.method.name)))
    known = known[part]
    section = section[part] if number < len(parents) else section
  if not isinstance(known, Field):
    raise ConfigError(
      f"{named}: expected a field of the section, such as {path}.{next(iter(known))}"
    )
  if path in ("method.name", "data.name", "student.model", "teacher.model"):
    raise ConfigError(f"{named}: expected the argument {path.partition('.')[0]} in its place")
  value = value.item() if isinstance(value, np.generic) else value
  if not known.accepts(value):
    raise ConfigError(f"{named}={value!r}: expected {known.meaning}")
  try:
    section[last] = value
  except TypeError as error:
    raise ConfigError(f"{named}={value!r}: {one_line(error)}") from error


def _paths(fields: Mapping[str, Any], above: str = "") -> list[str]:
  """Return the paths of all fields."""
  paths = []
  for name, field in fields.items():
    path = f"{above}{name}"
    paths += [path] if isinstance(field, Field) else _paths(field, f"{path}.")
  return paths


def _student(settings: ml_collections.ConfigDict, student: Any) -> nn.Module | None:
  """Set `student.model`; return the student if it is a module."""
  if isinstance(student, str):
    settings.student.model = student
    return None
  if not isinstance(student, nn.Module):
    kind = student.__name__ if isinstance(student, type) else type(student).__name__
    raise ConfigError(
      f"student: expected a linen module or one of jaxkd.models.names(), got {kind}"
    )
  settings.student.model = name_of(student)
  return student


def _teachers(
  settings: ml_collections.ConfigDict, teacher: Any, method: str
) -> tuple[Network, ...]:
  """Set the fields of the teacher; return the trained networks, if they are given."""
  section = settings.teacher
  taught = methods.is_taught(method)
  if teacher is None:
    if taught and not any(section[field] for field in _TRAINED):
      raise ConfigError(
        f"teacher=None: method {method!r} learns from a teacher: expected a jaxkd.types.Network, "
        "(module, variables), the directory of a bundle, or one of jaxkd.models.names()"
      )
    return ()
  if not taught:
    raise ConfigError(f"teacher: expected None, as method {method!r} has no trained teacher")
  for field in _TRAINED:
    if section[field]:
      raise ConfigError(
        f"config: teacher.{field}={section[field]!r}: expected teacher=None with it"
      )
  if isinstance(teacher, pathlib.Path) or (isinstance(teacher, str) and _is_path(teacher)):
    if not pathlib.Path(teacher).is_dir():
      raise ConfigError(
        f"teacher={str(teacher)!r}: there is no such directory, and no such model: expected a "
        f"bundle, or one of {', '.join(models.names())}"
      )
    section.bundle, section.model = str(teacher), ""
    return ()
  if isinstance(teacher, str):
    section.model = teacher
    return ()
  networks = [_network(one) for one in (teacher if _is_several(teacher) else [teacher])]
  names = [name_of(one.module, one.variables) for one in networks]
  section.model, section.count = "+".join(names), len(networks)
  return tuple(networks)


def _is_several(teacher: Any) -> bool:
  return isinstance(teacher, list) and bool(teacher)


def _is_path(text: str) -> bool:
  if text in models.names() or models.imported.is_own(text):
    return False
  return "/" in text or pathlib.Path(text).exists()


def _network(teacher: Any) -> Network:
  """Return a trained teacher as a Network.

  Raises:
    ConfigError: for anything but a module with its variables.
  """
  if isinstance(teacher, tuple) and len(teacher) == 2 and isinstance(teacher[0], nn.Module):
    network = teacher if isinstance(teacher, Network) else Network(*teacher)
    if isinstance(network.variables, Mapping) and "params" in network.variables:
      return network
    raise ConfigError(
      f"teacher {type(network.module).__name__}: expected its variables, "
      f"{{'params': ...}}, got {_kind(network.variables)}"
    )
  hint = " without its variables" if isinstance(teacher, nn.Module) else ""
  raise ConfigError(
    f"teacher: expected a jaxkd.types.Network, (module, variables), the directory of a bundle, one "
    f"of jaxkd.models.names() or None, got {_kind(teacher)}{hint}"
  )


def _kind(value: Any) -> str:
  if isinstance(value, Mapping):
    return f"a mapping with {', '.join(map(str, list(value)[:5])) or 'nothing'}"
  return f"a {type(value).__name__}"


def _data(settings: ml_collections.ConfigDict, data: Any) -> Callable[..., Dataset]:
  """Set `data.name`; return the function that loads the data set."""
  if isinstance(data, str):
    settings.data.name = data
    check_name(data)
    return load
  section = settings.data
  if section.image_size:
    raise ConfigError(
      f"config: data.image_size={section.image_size}: expected 0 with data of a program; "
      "jaxkd.data.from_arrays(..., image_size=...) resizes images"
    )
  seed = section.split_seed if section.split_seed >= 0 else settings.seed
  found = data_set(
    data,
    validation=section.validation,
    test=section.test or _TEST,
    seed=seed,
    labels=section.labels,
  )
  section.name = found.name
  return lambda *_, **__: found
