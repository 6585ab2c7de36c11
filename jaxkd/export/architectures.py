"""Architectures as JSON: classes by name with their fields, or the call that made a module.

Classes of jaxkd have their bare name. Any other class has its import path,
"mypkg.nets:Net", and is loaded only if the caller allows its package. A module whose class has no
path, or whose fields are no JSON values, is written as the call that made it: a path or a
registered name, and options.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from jaxkd import adapters, models
from jaxkd.errors import ConfigError, unknown_name
from jaxkd.models import imported

# Dtypes that a module's field may hold.
_DTYPES = ("float64", "float32", "float16", "bfloat16")
# Layers, whose construction runs no code but Flax's.
_ALWAYS = ("flax.linen",)


def _public_modules() -> dict[str, type[nn.Module]]:
  """Return every linen module class that jaxkd.models and jaxkd.adapters export, by name."""
  exported = (
    getattr(package, name)
    for package in (models, adapters)
    for name in getattr(package, "__all__", ())
  )
  return {
    value.__name__: value
    for value in exported
    if isinstance(value, type) and issubclass(value, nn.Module)
  }


MODULES: Mapping[str, type[nn.Module]] = MappingProxyType(_public_modules())


def encoded(value: Any, modules: Mapping[str, type[nn.Module]], where: str) -> Any:
  """Return a module, or the value of a field, as JSON.

  Args:
    value: a module, number, string, tuple, dict or dtype.
    modules: name -> class, of the classes that have a bare name.
    where: subject of error messages.

  Raises:
    ConfigError: for a value that JSON cannot hold, and a class that cannot be imported by name.
  """
  if value is None or isinstance(value, bool | int | float | str):
    return value
  if isinstance(value, list | tuple):
    return [encoded(item, modules, where) for item in value]
  if isinstance(value, Mapping):
    for key in value:
      if not isinstance(key, str):
        raise ConfigError(f"{where}: a bundle cannot hold the key {key!r}: expected a string")
    return {"mapping": {key: encoded(item, modules, where) for key, item in value.items()}}
  if isinstance(value, nn.Module):
    return _encoded_module(value, modules)
  try:
    dtype = jnp.dtype(value)
  except TypeError:
    dtype = jnp.dtype(object)
  if dtype == jnp.dtype(object):  # numpy's dtype for any class
    raise ConfigError(f"{where}: a bundle cannot hold {value!r}")
  return {"dtype": dtype.name}


def why_not(module: nn.Module) -> str:
  """Return why a bundle cannot hold a module, in one line; "" if it can."""
  try:
    encoded(module, MODULES, "network")
  except ConfigError as error:
    return str(error)
  return ""


def _encoded_module(module: nn.Module, modules: Mapping[str, type[nn.Module]]) -> Any:
  try:
    name = _name_of(type(module), modules)
    called = type(module).__name__
    return {
      "class": name,
      "fields": {
        field: encoded(getattr(module, field), modules, f"{called}.{field}")
        for field in _fields(type(module))
      },
    }
  except ConfigError:
    origin = imported.origin_of(module)
    if origin is None:
      raise
    arguments = {k: encoded(v, modules, f"{origin.name}: {k}") for k, v in origin.options.items()}
    if unknown := sorted(set(arguments) - set(imported.OPTIONS)):
      raise ConfigError(
        f"{origin.name} was called with {unknown[0]!r}: a bundle holds calls with "
        f"{', '.join(imported.OPTIONS)} alone"
      ) from None
    return {"made_by": origin.name, "arguments": arguments}


def _name_of(kind: type[nn.Module], modules: Mapping[str, type[nn.Module]]) -> str:
  """Return the bare name of a class, or its import path."""
  name, module = kind.__name__, kind.__module__
  if modules.get(name) is kind:
    return name
  if kind in (models.FromNNX, models.FromFunction):
    kept = {
      models.FromNNX: "an NNX model has no fields: make it by PACKAGE.MODULE:CALLABLE or a name of "
      "jaxkd.models.register (jaxkd.models.create)",
      models.FromFunction: "a function has no fields: keep the function, or export it as StableHLO",
    }
    raise ConfigError(f"a bundle cannot hold this {name}: {kept[kind]}")
  why = ""
  if module == "__main__":
    why = "it is defined in the script that runs (__main__)"
  elif "<locals>" in kind.__qualname__:
    why = f"it is defined inside {kind.__qualname__.partition('.<locals>')[0]}"
  else:
    found: Any = sys.modules.get(module)
    if module.startswith(imported.FILE_MODULE):
      module = str(found.__file__)
    for part in kind.__qualname__.split("."):
      found = getattr(found, part, None)
    if found is not kind:
      why = f"{module}.{kind.__qualname__} is another class, or does not exist"
  if why:
    raise ConfigError(
      f"module class {name!r} cannot be imported by name ({why}): expected a class at the top of a "
      "module, or a model of jaxkd.models.create or jaxkd.models.register"
    )
  return f"{module}:{kind.__qualname__}"


def decoded(
  value: Any, modules: Mapping[str, type[nn.Module]], source: Path, allow: Collection[str] = ()
) -> Any:
  """Return a module, or the value of a field, from JSON.

  Args:
    value: result of `encoded`.
    modules: name -> class, of the classes that have a bare name.
    source: the bundle, for error messages.
    allow: packages, modules or files whose classes and callables may be imported and called.

  Raises:
    ConfigError: for an unknown class or field, and for code that is not allowed.
  """
  inner = functools.partial(decoded, modules=modules, source=source, allow=allow)
  match value:
    case None | bool() | int() | float() | str():
      return value
    case list():
      return tuple(inner(item) for item in value)
    case {"dtype": str(name)} if name in _DTYPES:
      return jnp.dtype(name)
    case {"mapping": dict(items)}:
      return {key: inner(item) for key, item in items.items()}
    case {"class": str(name), "fields": dict(fields)}:
      kind = _class(name, modules, source, allow)
      known = _fields(kind)
      for field in fields:
        if field not in known:
          raise unknown_name(f"field of {name} in bundle {source}:", field, known)
      values = {key: inner(item) for key, item in fields.items()}
      try:
        return kind(**values)
      except TypeError as error:
        raise ConfigError(f"bundle {source}: damaged model.json: {error}") from error
    case {"made_by": str(name), "arguments": dict(arguments)}:
      return _called(name, {k: inner(v) for k, v in arguments.items()}, source, allow)
  raise ConfigError(f"bundle {source}: damaged model.json: {value!r} is no part of an architecture")


def _class(
  name: str, modules: Mapping[str, type[nn.Module]], source: Path, allow: Collection[str]
) -> type[nn.Module]:
  if name in modules:
    return modules[name]
  if not imported.is_path(name):
    raise unknown_name(f"module class in bundle {source}:", name, modules)
  found = _allowed(name, source, (*allow, *_ALWAYS))
  if not (isinstance(found, type) and issubclass(found, nn.Module)):
    raise ConfigError(f"bundle {source} names {name}, which is no class of linen modules")
  return found


def _called(
  name: str, arguments: Mapping[str, Any], source: Path, allow: Collection[str]
) -> nn.Module:
  for argument in arguments:
    if argument not in imported.OPTIONS:
      raise unknown_name(f"argument of {name} in bundle {source}:", argument, imported.OPTIONS)
  if imported.is_path(name):
    _allowed(name, source, allow)
  elif name not in imported.REGISTERED:
    raise ConfigError(
      f"bundle {source} names the model {name!r}, which is not registered here: expected a call of "
      "jaxkd.models.register before, as where the bundle was written"
    )
  return imported.create(f"bundle {source}: {name}", name, arguments)


def _allowed(name: str, source: Path, allow: Collection[str]) -> Any:
  """Return what a path of a bundle stands for, if the caller allows the module that defines it."""
  if isinstance(allow, str):
    raise ConfigError(f"allow={allow!r}: expected a sequence of packages, ({allow!r},)")
  module = name.rpartition(":")[0]
  if not _within(module, allow):
    package = module if module.endswith(".py") else module.partition(".")[0]
    raise ConfigError(
      f"bundle {source} names code that is not part of jaxkd, {name}: if you trust it, allow its "
      f"import with allow=({package!r},), --allow_import={package} of a script, or "
      f"--config.teacher.allow_import={package}"
    )
  found = imported.find(f"bundle {source}: {name}", name)
  # A path through an allowed module must not lead to what that module imported.
  if isinstance(found, nn.Module | nnx.Module | functools.partial):
    return found
  defined = str(getattr(found, "__module__", ""))
  plain = inspect.isfunction(found) or isinstance(found, type)
  if not plain or not (_within(defined, allow) or defined.startswith(imported.FILE_MODULE)):
    raise ConfigError(
      f"bundle {source} names {name}, which is defined in {defined or 'no module'}: expected a "
      f"function or class of {', '.join(allow)}"
    )
  return found


def _within(module: str, allow: Collection[str]) -> bool:
  return any(module == name or module.startswith(f"{name}.") for name in allow)


def _fields(module: type[nn.Module]) -> tuple[str, ...]:
  names = (field.name for field in dataclasses.fields(module) if field.init)
  return tuple(name for name in names if name not in ("parent", "name"))
