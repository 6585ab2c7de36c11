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
LISTS = ("methods", "models", "datasets")


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
  """Add `jaxkd list`: the methods, models and data sets that a config can name."""
  parser = subparsers.add_parser("list", help="list methods, models or datasets")
  parser.add_argument("what", type=_known("list", LISTS), metavar="|".join(LISTS))
  parser.add_argument("--names", action="store_true", help="print names only")
  parser.set_defaults(run=lambda arguments: listed(arguments.what, names_only=arguments.names))


def listed(what: str, *, names_only: bool = False) -> list[str]:
  """The lines of `jaxkd list`.

  Args:
    what: one of `LISTS`.
    names_only: whether summaries, sources and sizes are left out.

  Raises:
    ConfigError: for another `what`.

  >>> listed("datasets")[2]
  'digits         10 classes, images of 8x8x1, 1437 for training, 360 for tests'
  """
  found = {"methods": _methods, "models": _models, "datasets": _datasets}
  if what not in found:
    raise unknown_name("list", what, found)
  rows = found[what]()
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


def _add_command(name: str) -> Callable[[Any], None]:
  """Return a function that adds one of `jaxkd.commands` to the help; it parses its flags itself."""
  return lambda subparsers: subparsers.add_parser(name, help=commands.COMMANDS[name])


# Name -> function that adds it; in the order of the help.
SUBCOMMANDS = {**{name: _add_command(name) for name in commands.COMMANDS}, "list": add_list}

if __name__ == "__main__":
  sys.exit(main())
