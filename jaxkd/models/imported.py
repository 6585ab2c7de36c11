"""Models that are not in the registry: imported by path, or registered; called and checked.

A path is "PACKAGE.MODULE:CALLABLE" or "FILE.py:CALLABLE". The callable gets `num_classes`, `dtype`,
`axis_name` and `dropout`, each only if its signature accepts it; fields of these names of the
module that it returns are set where the callable did not set them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from jaxkd.errors import ConfigError, one_line, unknown_name
from jaxkd.models.nnx_models import from_nnx
from jaxkd.models.tap import tap
from jaxkd.types import Network

# What a callable may be called with, in an experiment and when a bundle is loaded.
OPTIONS = ("num_classes", "dtype", "axis_name", "dropout")
PATH = "PACKAGE.MODULE:CALLABLE"

# Name -> callable, of `jaxkd.models.register`.
REGISTERED: dict[str, Any] = {}


def is_path(name: Any) -> bool:
  """Check whether a model's name is an import path.

  >>> is_path("mypkg.nets:make"), is_path("resnet8")
  (True, False)
  """
  return isinstance(name, str) and ":" in name


def is_own(name: Any) -> bool:
  """Check whether a name is an import path or a registered model."""
  return is_path(name) or name in REGISTERED


def is_hashable(module: nn.Module) -> bool:
  """Check whether a module can be a key: one with a list in a field cannot."""
  try:
    hash(module)
  except TypeError:
    return False
  return True


def find(where: str, name: str) -> Any:
  """Return the callable, module or Network that a path or a registered name stands for.

  Packages are looked for in the current directory first.

  Args:
    where: field and value, the subject of error messages.
    name: a path, or a registered name.

  Raises:
    ConfigError: if it cannot be imported, or the module has no such attribute.

  >>> find("student.model='flax.linen:Dens'", "flax.linen:Dens")  # doctest: +ELLIPSIS
  Traceback (most recent call last):
  jaxkd.errors.ConfigError: student.model='flax.linen:Dens': unknown name in flax.linen 'Dens': ...
  """
  if name in REGISTERED:
    return REGISTERED[name]
  source, _, attributes = name.rpartition(":")
  if not source or not attributes:
    raise ConfigError(f"{where}: expected {PATH} or FILE.py:CALLABLE")
  module = _from_file(where, source) if source.endswith(".py") else _from_package(where, source)
  found: Any = module
  for attribute in attributes.split("."):
    if not hasattr(found, attribute):
      known = [n for n, value in vars(found).items() if not n.startswith("_") and callable(value)]
      own = [n for n in known if getattr(vars(found)[n], "__module__", "") == module.__name__]
      raise ConfigError(f"{where}: {unknown_name(f'name in {source}', attribute, own or known)}")
    found = getattr(found, attribute)
  if not callable(found) and not isinstance(found, Network):
    raise ConfigError(f"{where} is a {type(found).__name__}, expected a callable")
  return found


def call(where: str, make: Any, options: Mapping[str, Any]) -> Any:
  """Return what a callable returns for those of the options that its signature accepts.

  A linen module, an NNX module or a Network in place of a callable is returned as it is.

  Raises:
    ConfigError: if it raises, or if it does not accept an option that is not one of OPTIONS.
  """
  if isinstance(make, nn.Module | nnx.Module | Network):
    return make
  takes = _accepted(make, options)
  for option in options:
    if option not in takes and option not in OPTIONS:
      raise unknown_name(f"option of {where}:", option, [*OPTIONS, *takes])
  if "rngs" in _parameters(make):  # an NNX class or factory: its values are drawn by `init`
    return from_nnx(functools.partial(make, **takes), where=where)
  try:
    return make(**takes)
  except Exception as error:  # the user's code can raise any type
    raise ConfigError(f"{where} raised {type(error).__name__}: {one_line(error)}") from error


def create(where: str, name: str, options: Mapping[str, Any]) -> nn.Module:
  """Return the linen module of a path or a registered name.

  Args:
    where: field and value, the subject of error messages.
    name: a path, or a registered name.
    options: `num_classes` and others, see OPTIONS; a dropout of 0 is not passed on.

  Raises:
    ConfigError: as `find` and `call`; for a result that is no linen or NNX module; if `dtype` or
      `dropout` are asked for and cannot be set.
  """
  options = {k: v for k, v in options.items() if k != "dropout" or v}
  make = find(where, name)
  made = call(where, make, options)
  if isinstance(made, nnx.Module):
    made = from_nnx(made, where=where)
  if isinstance(made, Network):
    raise ConfigError(
      f"{where} is a trained Network, in which nothing learns: expected a linen or NNX module; a "
      "Network can be a teacher"
    )
  if not isinstance(made, nn.Module):
    hint = "; jaxkd.models.from_function makes a frozen teacher of a function"
    raise ConfigError(
      f"{where} returns a {type(made).__name__}, expected a linen or NNX module"
      f"{hint if callable(made) else ''}"
    )
  passed = {} if isinstance(make, nn.Module) else _accepted(make, options)
  module = _called_like_ours(_with_fields(where, made, options, passed))
  _attach(module, Origin(name, dict(options)))
  return module


@dataclasses.dataclass(frozen=True)
class Origin:
  """The call that made a module: a path or registered name, and the options."""

  name: str
  options: Mapping[str, Any]


_ORIGIN = "_jaxkd_origin"  # the attribute of a module


def origin_of(module: nn.Module) -> Origin | None:
  """Return the call that made this module, or one that it is a copy of; None if there was none.

  linen's `clone` does not keep it, as it may change fields; `copy_origins` does.
  """
  return getattr(module, _ORIGIN, None)


def copy_origins(source: nn.Module, copy: nn.Module) -> None:
  """Attach the origins of a module, and of the modules in its fields, to an unchanged copy."""
  if origin := origin_of(source):
    _attach(copy, origin)
  for field in dataclasses.fields(source):
    if field.init and field.name not in ("parent", "name"):
      values = (jax.tree.leaves(getattr(m, field.name), is_leaf=_is_module) for m in (source, copy))
      for one, other in zip(*values, strict=True):
        if _is_module(one):
          copy_origins(one, other)


def _attach(module: nn.Module, origin: Origin) -> None:
  object.__setattr__(module, _ORIGIN, origin)  # linen modules are frozen


def _is_module(value: Any) -> bool:
  return isinstance(value, nn.Module)


def _with_fields(
  where: str, module: nn.Module, options: Mapping[str, Any], passed: Mapping[str, Any]
) -> nn.Module:
  """Return the module with its fields set to the options that the callable did not accept."""
  fields = {f.name: f for f in dataclasses.fields(module) if f.init}
  changes = {}
  for option in OPTIONS:
    if option in passed or option not in options:
      continue
    value = options[option]
    if option in fields and (
      option in ("num_classes", "dropout") or _is_unset(module, fields[option])
    ):
      changes[option] = value
    elif option == "dropout":
      raise ConfigError(f"{where} takes no dropout: dropout={value:g}, expected 0.0")
    elif option == "dtype" and not _computes_in(module, value):
      raise ConfigError(
        f"{where} takes no dtype: it cannot be made to compute in {jnp.dtype(value).name} "
        "(compute_dtype); expected a callable or a module with dtype, or float32"
      )
  return module.clone(**changes) if changes else module


def _computes_in(module: nn.Module, dtype: Any) -> bool:
  """Check whether a module of which nothing is set computes in a dtype; float32 is the usual."""
  if dtype is None or jnp.dtype(dtype) == jnp.float32:
    return True
  own = getattr(module, "dtype", None)
  return own is not None and jnp.dtype(own) == jnp.dtype(dtype)


def _is_unset(module: nn.Module, field: Any) -> bool:
  value = getattr(module, field.name)
  return value is None or value is field.default


def _called_like_ours(module: nn.Module) -> nn.Module:
  """Return a module that can be called with `train`, or without it for evaluation."""
  parameters = inspect.signature(type(module).__call__).parameters
  train = parameters.get("train")
  if train is not None and train.default is not inspect.Parameter.empty:
    return module
  return tap(module, {})


def _parameters(make: Any) -> Mapping[str, inspect.Parameter]:
  # The metaclass of NNX modules hides their signature.
  is_nnx = isinstance(make, type) and issubclass(make, nnx.Module)
  try:
    return inspect.signature(make.__init__ if is_nnx else make).parameters
  except (TypeError, ValueError):  # of a function in C
    return {}


def _accepted(make: Any, options: Mapping[str, Any]) -> dict[str, Any]:
  """Return the options that a callable's signature accepts by name."""
  parameters = _parameters(make)
  if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
    return dict(options)
  by_name = {
    n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
  }
  return {name: value for name, value in options.items() if name in by_name}


def _from_package(where: str, name: str) -> types.ModuleType:
  if name == "__main__":
    raise ConfigError(
      f"{where}: __main__ is the running script, which no other program can import: expected a "
      "module, or FILE.py:CALLABLE"
    )
  here = os.getcwd()
  with _first_on_path(here):
    return _imported(where, name, lambda: importlib.import_module(name))


def _from_file(where: str, path: str) -> types.ModuleType:
  file = os.path.abspath(path)
  if not os.path.isfile(file):
    raise ConfigError(f"{where}: there is no file {file}")
  # A changed file is another module.
  stamp = f"{file}:{os.stat(file).st_mtime_ns}"
  name = f"{FILE_MODULE}{hashlib.sha256(stamp.encode()).hexdigest()[:16]}"
  if name in sys.modules:
    return sys.modules[name]
  spec = importlib.util.spec_from_file_location(name, file)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  try:
    with _first_on_path(os.path.dirname(file)):
      _imported(where, path, functools.partial(spec.loader.exec_module, module))
  except BaseException:
    del sys.modules[name]
    raise
  return module


# Start of the names of modules that are files.
FILE_MODULE = "_jaxkd_file_"


def _imported(where: str, name: str, load: Callable[[], Any]) -> Any:
  try:
    importlib.invalidate_caches()
    return load()
  except (Exception, SystemExit) as error:  # any code runs here
    reason = f"{type(error).__name__}: {one_line(error)}"
    raise ConfigError(f"{where}: cannot import {name!r} ({reason})") from error


@contextlib.contextmanager
def _first_on_path(folder: str) -> Iterator[None]:
  """Look for modules in `folder` first inside the block, and last from then on."""
  sys.path.insert(0, folder)
  try:
    yield
  finally:
    with contextlib.suppress(ValueError):  # the imported code may have changed the path
      sys.path.remove(folder)
    if folder not in sys.path:
      sys.path.append(folder)
