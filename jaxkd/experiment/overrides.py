"""Configs from a line of text: a method, and the fields that differ from its config.

"simkd" is the method's config; "simkd/reused_stages=1/learning_rate=0.4" sets fields of the
method's section, "alone/student.model=resnet8_w8/data.crop=2" fields of other sections. Values are
Python literals; any other text is a string, and "stage2+stage3" is a tuple of names.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import operator
import pathlib
import types
from collections.abc import Callable, Sequence

from jaxkd.errors import needed_by

with needed_by("jaxkd.experiment.overrides"):
  import ml_collections


from jaxkd.errors import ConfigError, one_line
from jaxkd.experiment import config

GetConfig = Callable[[str], ml_collections.ConfigDict]


def load_module(path: pathlib.Path) -> types.ModuleType:
  """Import the Python file at `path` as a module.

  Raises:
    ConfigError: if there is no such file.
  """
  if not path.is_file():
    raise ConfigError(f"config={str(path)!r}: there is no such file")
  spec = importlib.util.spec_from_file_location(path.stem, path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def from_text(text: str) -> ml_collections.ConfigDict:
  """Return the config of FILE.py:METHOD, checked; without METHOD, the file's default.

  Raises:
    ConfigError: if there is no such file, it has no `get_config`, or as `config.check_config`.
  """
  file, _, method = text.partition(".py:")
  path = pathlib.Path(f"{file}.py" if method else file.removesuffix(":"))
  if path.suffix != ".py":
    raise ConfigError(f"config={text!r}: expected FILE.py:METHOD, such as configs/digits.py:kd")
  module = load_module(path)
  if not hasattr(module, "get_config"):
    raise ConfigError(f"config={text!r}: {path} has no get_config")
  settings = module.get_config(method) if method else module.get_config()
  config.check_config(settings)
  return settings


def variant(
  get_config: GetConfig, name: str, changes: Sequence[str] = ()
) -> ml_collections.ConfigDict:
  """Return the config of "METHOD/field=value/...", checked.

  Args:
    get_config: `get_config` of a config file; its argument is a method.
    name: a method, followed by changes.
    changes: "section.field=value", applied before those of `name`.

  Raises:
    ConfigError: naming the change that cannot be made, or as `config.check_config`.

  >>> variant(config.base_config, "kd/temperature=2/student.model=resnet8").method.temperature
  2.0
  """
  method, *fields = name.split("/")
  settings = get_config(method)
  fields = [x if "." in x.partition("=")[0] else f"method.{x}" for x in fields]
  for change in [*changes, *fields]:
    path, _, value = change.partition("=")
    *sections, field = path.split(".")
    try:
      section = functools.reduce(operator.getitem, sections, settings)
      section[field] = _literal(value)
    except (KeyError, TypeError) as error:
      raise ConfigError(f"{change!r}: {one_line(error)}") from error
  config.check_config(settings)
  return settings


def _literal(value: str) -> object:
  try:
    return ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return tuple(value.split("+")) if "+" in value else value
