"""Reporters that send a run's metrics to a tracker of experiments: W&B, MLflow, trackio.

A tracker has one run for each phase, with a value of every metric of every epoch at its number of
updates. Packages are imported when a reporter is made, so that a missing one is named at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from jaxkd.errors import needed_by, unknown_name
from jaxkd.train.reporting import Row, Silent

# Name in a config -> class, of the module of that name in this package.
TRACKERS = {"wandb": "WandB", "mlflow": "MLflow", "trackio": "Trackio"}


class Tracker(Silent):
  """A reporter with one run of a tracker for each phase; a subclass names the calls.

  A phase that resumes begins a new run, which gets the epochs before the checkpoint first; so does
  one that goes back to an earlier checkpoint.
  """

  def __init__(self, package: str) -> None:
    with needed_by(f"jaxkd.report.{TRACKERS[package]}", extra=package):
      self.package: Any = importlib.import_module(package)

  def phase_started(self, phase: str, steps: int, rows: list[Row]) -> None:
    """Begin a run, with the epochs before the checkpoint."""
    self.begin(phase)
    for row in rows:
      self.epoch_ended(row)

  def rolled_back(self, phase: str, rows: list[Row]) -> None:
    """End the run, and begin another with the epochs that remain valid."""
    self.end()
    self.phase_started(phase, 0, rows)

  def epoch_ended(self, row: Row) -> None:
    """Send the metrics of one epoch."""
    self.log(scalars(row), row["step"])

  def phase_ended(self, phase: str) -> None:
    """End the run."""
    self.end()

  def begin(self, phase: str) -> None:
    """Begin a run of this name."""
    raise NotImplementedError

  def log(self, values: Mapping[str, float], step: int) -> None:
    """Send values after this number of updates."""
    raise NotImplementedError

  def end(self) -> None:
    """End the run."""
    raise NotImplementedError


def scalars(row: Row) -> dict[str, float]:
  """Return the metrics of one epoch by name.

  >>> scalars({"train": {"loss": 1.5}, "validation": {"student": {"accuracy": 0.5}}})
  {'train/loss': 1.5, 'validation/student_accuracy': 0.5}
  """
  values = {f"train/{name}": value for name, value in row["train"].items()}
  for predictor, scores in row.get("validation", {}).items():
    values |= {f"validation/{predictor}_{name}": value for name, value in scores.items()}
  return values


def trackers(names: str, group: str) -> list[Tracker]:
  """Return the reporters of "wandb,mlflow", the text of a config.

  Args:
    names: of TRACKERS, with commas; "" for none.
    group: name of the run, which its phases share.

  Raises:
    ConfigError: for an unknown name.
    MissingPackage: naming the package that is not installed.
  """
  found = []
  for name in filter(None, (part.strip() for part in names.split(","))):
    if name not in TRACKERS:
      raise unknown_name("reporter", name, TRACKERS)
    module = importlib.import_module(f"jaxkd.report.{name}_runs")
    found.append(getattr(module, TRACKERS[name])(group=group))
  return found
