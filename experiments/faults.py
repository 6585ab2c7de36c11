"""Interrupts, damages and starves runs of the real script, and tabulates what became of them.

    python experiments/faults.py --output experiments/results/faults.md

The faults are the tests marked so in tests/faults; each tells its row by `record_property`. Names
of tests after `--` choose some of them, as for pytest: `-- tests/faults/test_kill.py`.
"""

import os
import pathlib
import platform
import sys
import time
from typing import Any

import jax
import pytest
from absl import app, flags
from rich.console import Console

from jaxkd import report

_OUTPUT = flags.DEFINE_string("output", None, "File of the table, in Markdown.")
_HEAD = "| fault | tries | outcome | seconds |\n|---|---|---|---|"


class _Table:
  """A pytest plugin that keeps a row of every test."""

  def __init__(self) -> None:
    self.rows: list[str] = []

  def pytest_runtest_logreport(self, report: Any) -> None:
    """Notes how a test ended; what it had told before it failed is told all the same."""
    if report.when != "call" and report.passed:
      return
    told = dict(report.user_properties)
    outcome = told.get("outcome", "")
    if not report.passed:
      outcome = f"{report.outcome.upper()}: {outcome or report.longreprtext.splitlines()[-1]}"
    cells = (told.get("fault", report.nodeid), told.get("tries", ""), outcome)
    self.rows.append(f"| {' | '.join(map(str, cells))} | {report.duration:.0f} |")


def main(argv: list[str]) -> None:
  """Runs the tests and writes the table; ends as pytest does."""
  table, console = _Table(), Console()
  started = time.monotonic()
  chosen = argv[1:] or ["tests/faults"]
  status = pytest.main(["-m", "faults", "--tb=short", *chosen], plugins=[table])
  minutes = (time.monotonic() - started) / 60
  machine = f"{os.cpu_count()} cores, {platform.machine()}; jax {jax.__version__}"
  command = f"python experiments/faults.py {' '.join(sys.argv[1:])}"
  text = "\n".join([_HEAD, *table.rows, "", f"{minutes:.0f} minutes; {machine}.\n"])
  console.print(text, soft_wrap=True, highlight=False, markup=False)
  if _OUTPUT.value:
    report.write_atomically(pathlib.Path(_OUTPUT.value), f"Written by `{command}`.\n\n{text}")
  sys.exit(int(status))


if __name__ == "__main__":
  app.run(main)
