"""The command `jaxkd`: its subcommands and their arguments.

    jaxkd list methods
    python -m jaxkd.cli list models

A subcommand is a function `add_NAME(subparsers)`, which defines its arguments and sets `run`, a
function (arguments) -> lines. Modules that take long to import are imported by `run`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from jaxkd import commands
from jaxkd.errors import ConfigError, one_line, unknown_name

# Things that `jaxkd list` lists.
LISTS = ("methods", "models", "data", "fields")
# Earlier name -> name of a list.
_ALIASES = {"datasets": "data"}


def main(argv: Sequence[str] | None = None) -> int:
  """Run the command; return its exit status.

  Args:
    argv: arguments after the command's name; None takes those of the process.

  Returns:
    0, or 1 after an error, which is one line on stderr.
  """
  try:
    given = sys.argv[1:] if argv is None else list(argv)
    if given and not given[0].startswith("-") and given[0] not in SUBCOMMANDS:
      raise unknown_name("command", given[0], SUBCOMMANDS)
    if given and given[0] in commands.COMMANDS:
      return commands.run(given[0], given[1:])
    arguments = _parser().parse_args(given)
    for line in arguments.run(arguments):
      print(line)
    sys.stdout.flush()
  except BrokenPipeError:  # the reader of a pipe, such as `head`, has ended
    sys.stdout = None  # nothing is left to flush at exit
  except ConfigError as error:
    print(f"error: {one_line(error)}", file=sys.stderr)
    return 1
  return 0


class _Parser(argparse.ArgumentParser):
  """A parser whose errors are ConfigErrors in place of a usage of several lines."""

  def error(self, message: str) -> NoReturn:
    raise ConfigError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(
    prog="jaxkd", description="Knowledge distillation in JAX and Flax.", allow_abbrev=False
  )
  subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
  for add in SUBCOMMANDS.values():
    add(subparsers)
  return parser


def _known(what: str, names: Iterable[str]) -> Any:
  """A type of argparse that accepts some names, and names the nearest of them otherwise."""

  def convert(text: str) -> str:
    if text not in names:
      raise argparse.ArgumentTypeError(str(unknown_name(what, text, names)))
    return text

  return convert


def add_list(subparsers: Any) -> None:
  """Add `jaxkd list`: the methods, models, data sets and fields that a config can have."""
  parser = subparsers.add_parser("list", help="list methods, models, data sets or fields")
  parser.add_argument("what", type=_known("list", (*LISTS, *_ALIASES)), metavar="|".join(LISTS))
  parser.add_argument(
    "method", nargs="?", default="", help="after fields: a method, whose own fields are listed too"
  )
  parser.add_argument("--names", action="store_true", help="print names only")
  parser.set_defaults(run=lambda given: listed(given.what, given.method, names_only=given.names))


def listed(what: str, method: str = "", *, names_only: bool = False) -> list[str]:
  """The lines of `jaxkd list`.

  Args:
    what: one of `LISTS`.
    method: a method or a sum of them, for "fields"; "" lists the fields of every method alone.
    names_only: whether summaries, sources and sizes are left out.

  Raises:
    ConfigError: for another `what` or `method`.

  >>> listed("data")[2]
  'digits         10 classes, images of 8x8x1, 1437 for training, 360 for tests'
  """
  what = _ALIASES.get(what, what)
  if method and what != "fields":
    raise ConfigError(f"{method!r}: expected nothing after jaxkd list {what}")
  found = {"methods": _methods, "models": _models, "data": _datasets}
  if what not in LISTS:
    raise unknown_name("list", what, LISTS)
  rows = _fields(method) if what == "fields" else found[what]()
  if names_only:
    return list(rows)
  width = max(map(len, rows))
  return [f"{name:{width}}  {text}".rstrip() for name, text in rows.items()]


def _methods() -> dict[str, str]:
  from jaxkd.methods import METHODS

  return {
    name: "; ".join(filter(None, (method.summary, method.source)))
    for name, method in METHODS.items()
  }


def _models() -> dict[str, str]:
  from jaxkd import models

  return {name: type(models.create(name, num_classes=1)).__name__ for name in models.names()}


def _datasets() -> dict[str, str]:
  from jaxkd.data import DATASETS, fake_dataset

  rows = {}
  for name in DATASETS:
    data = fake_dataset(name, validation=0)
    size = "x".join(map(str, data.image_shape or ()))
    rows[name] = (
      f"{data.num_classes} classes, images of {size}, {len(data.train)} for training, "
      f"{len(data.test)} for tests"
    )
  return rows


def _fields(method: str) -> dict[str, str]:
  """Return the fields of a config: default, accepted values, and source of a method's own."""
  from jaxkd import methods
  from jaxkd.experiment import config
  from jaxkd.fields import Field

  def rows(fields: Any, path: str, source: str) -> dict[str, str]:
    found = {}
    for name, field in fields.items():
      where = f"{path}{name}"
      if isinstance(field, Field):
        texts = (f"default {field.default!r}", field.meaning, source)
        found[where] = "; ".join(filter(None, texts))
      else:
        part = methods.METHODS.get(name) if path == "method." else None
        found |= rows(field, f"{where}.", part.source if part else source)
    return found

  common = rows(config.COMMON, "", "")
  if not method:
    return common
  known = methods.methods(method)
  source = next(iter(known.values())).source if len(known) == 1 else ""
  own = rows(methods.method_fields(method), "method.", source)
  return own | common


def _add_command(name: str) -> Callable[[Any], None]:
  """Return a function that adds one of `jaxkd.commands` to the help; it parses its flags itself."""
  return lambda subparsers: subparsers.add_parser(name, help=commands.COMMANDS[name])


# Name -> function that adds it; in the order of the help.
SUBCOMMANDS = {**{name: _add_command(name) for name in commands.COMMANDS}, "list": add_list}

if __name__ == "__main__":
  sys.exit(main())
