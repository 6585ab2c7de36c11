"""The start of `jaxkd train`: signal handlers, before the imports, which take seconds."""

from __future__ import annotations

from jaxkd.errors import needed_by
from jaxkd.runtime.signals import Interruption, install_signal_handlers

with needed_by("jaxkd train"):
  from rich.console import Console

CONSOLE = Console()
STOP = Interruption()


def say(line: str) -> None:
  """Print a line."""
  CONSOLE.print(line, soft_wrap=True, highlight=False, markup=False)
  CONSOLE.show_cursor(True)  # which a progress bar hides


def run(arguments: list[str]) -> int:
  """Run the command with these flags; return its exit status."""
  install_signal_handlers(STOP, say)
  from jaxkd.commands import training

  return training.run(arguments)
