"""The commands `jaxkd train`, `compare`, `evaluate`, `export` and `budget`, one module each.

The scripts in experiments/ call the same functions. Exit statuses: 0; 1 after an error, one line on
stderr; 75 (SIGTERM) or 130 (Ctrl-C) for a run that stopped on a signal with everything saved.

This module imports little: `train` installs its signal handlers before the other imports.
"""

from __future__ import annotations

import importlib
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jaxkd.errors import ConfigError, DiskError, one_line

# Name -> one line of help.
COMMANDS = {
  "train": "train the teacher and the students of a config, or resume",
  "compare": "compare methods over several seeds",
  "evaluate": "score trained networks on a data set",
  "export": "export a trained network as one file",
  "budget": "evaluate prediction under a budget",
}


def run(name: str, arguments: Sequence[str]) -> int:
  """Run a command; return its exit status. A wrong argument is one line on stderr.

  Args:
    name: one of `COMMANDS`.
    arguments: its flags.
  """
  try:
    module = importlib.import_module(f"jaxkd.commands.{name}")
    return int(module.run(list(arguments)) or 0)
  except (ConfigError, DiskError) as error:
    print(f"error: {one_line(error)}", file=sys.stderr)
    return 1


def run_main(module: Any, main: Callable[[list[str]], None], arguments: Sequence[str]) -> int:
  """Run `main` of a module of flags; `--help` prints the module's docstring and flags.

  Args:
    module: the command's module, with its flags, FLAGS.
    main: function of the arguments that are no flags, the first one the command's name.
    arguments: the flags.

  Raises:
    ConfigError: for a wrong flag, and as `main`.
  """
  from absl import app, flags

  if wants_help(module, arguments):
    return 0

  def parse(argv: list[str]) -> list[str]:
    try:
      return parsed(module.FLAGS, argv)
    except flags.Error as error:
      raise ConfigError(one_line(error)) from error

  app.run(main, argv=[module.__name__, *arguments], flags_parser=parse)
  return 0


def parsed(own: Any, argv: list[str]) -> list[str]:
  """Parse the flags of a command, and those of absl, such as --verbosity.

  Args:
    own: the command's FlagValues, apart from absl's, which all modules of a process share.
    argv: name of the command, and its arguments.

  Returns:
    The arguments that are no flags, after the name.
  """
  from absl import flags

  shared = flags.FLAGS
  for name in shared:
    if name not in own and name == shared[name].name:  # and not a short name
      own[name] = shared[name]
  shared(argv[:1])  # as `app.run` expects
  return list(own(argv))


def wants_help(module: Any, arguments: Sequence[str]) -> bool:
  """Print the docstring and the flags of a module if the arguments ask for help."""
  if not {"--help", "-help", "-h", "--helpfull", "--helpshort"} & set(arguments):
    return False
  print(f"{module.__doc__}\n{module.FLAGS.module_help(module.__name__)}")
  return True


def written_by(name: str) -> str:
  """Return the command line of this process, for a table that it writes."""
  given = sys.argv[1:]
  if pathlib.PurePath(sys.argv[0]).name in ("jaxkd", "cli.py"):
    return f"jaxkd {' '.join(given)}"
  return f"python experiments/{name}.py {' '.join(given)}"
