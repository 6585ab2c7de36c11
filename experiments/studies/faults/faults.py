"""Interrupt, damage and starve runs of the real script, and tabulate the outcomes.

    python experiments/studies/faults/faults.py --output faults.md

The faults are the tests in tests/faults, each of which records its row by `record_property`, and
test files about wrong data, files and configs, with one row per file. Names of tests after `--`
choose some of them, as for pytest: `-- tests/faults/test_kill.py`.
"""

import inspect
import os
import pathlib
import platform
import sys
import time
from typing import Any

from jaxkd.errors import needed_by_script

with needed_by_script("experiments/studies/faults/faults.py", extra="test"):
  import jax
  import pytest
  from absl import app, flags
  from rich.console import Console

  from jaxkd import report

_OUTPUT = flags.DEFINE_string("output", None, "File of the table, in Markdown.")
_CHOSEN = (
  "tests/faults",
  "tests/test_bad_input.py",
  "tests/test_hostile_files.py",
  "tests/data/test_validate_dataset.py",
  "tests/data/test_datasets.py::test_truncated_records_are_named_in_one_line",
)
_HEAD = "| fault | tries | outcome | seconds |\n|---|---|---|---|"


class _Table:
  """A pytest plugin: a row for every test that records one, and a row for every other file."""

  def __init__(self) -> None:
    self._rows: list[str] = []
    self._files: dict[str, list[Any]] = {}
    self._about: dict[str, str] = {}

  def pytest_itemcollected(self, item: pytest.Item) -> None:
    """Store the first line of the docstring of the test's file."""
    document = inspect.getdoc(getattr(item, "module", None)) or item.nodeid
    self._about[item.nodeid] = document.splitlines()[0].rstrip(".")

  def pytest_runtest_logreport(self, report: Any) -> None:
    """Store the outcome of a test; a failed test keeps what it recorded before."""
    if report.when != "call" and report.passed:
      return
    recorded = dict(report.user_properties)
    if report.passed and "fault" not in recorded:
      self._files.setdefault(self._about[report.nodeid], []).append(report)
      return
    outcome = recorded.get("outcome", "")
    if not report.passed:
      outcome = f"{report.outcome.upper()}: {outcome or report.longreprtext.splitlines()[-1]}"
    fault, tries = recorded.get("fault", report.nodeid), recorded.get("tries", "")
    self._add(fault, tries, outcome, report.duration)

  def _add(self, fault: str, tries: int | str, outcome: str, seconds: float) -> None:
    self._rows.append(f"| {fault} | {tries} | {outcome} | {seconds:.0f} |")

  def rows(self) -> list[str]:
    """Return the rows of tests, then the rows of files."""
    for about, reports in self._files.items():
      seconds = sum(report.duration for report in reports)
      self._add(about, len(reports), f"{len(reports)} tests passed", seconds)
    self._files = {}
    return self._rows


def main(argv: list[str]) -> None:
  """Run the tests and write the table; the exit status is pytest's."""
  table, console = _Table(), Console()
  started = time.monotonic()
  status = pytest.main(["-m", "not long", "--tb=short", *(argv[1:] or _CHOSEN)], plugins=[table])
  minutes = (time.monotonic() - started) / 60
  machine = f"{os.cpu_count()} cores, {platform.machine()}; jax {jax.__version__}"
  command = f"python experiments/studies/faults/faults.py {' '.join(sys.argv[1:])}"
  text = "\n".join([_HEAD, *table.rows(), "", f"{minutes:.0f} minutes; {machine}.\n"])
  console.print(text, soft_wrap=True, highlight=False, markup=False)
  if _OUTPUT.value:
    report.write_atomically(pathlib.Path(_OUTPUT.value), f"Written by `{command}`.\n\n{text}")
  sys.exit(int(status))


if __name__ == "__main__":
  app.run(main)
