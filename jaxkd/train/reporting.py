"""Reporters: receivers of a run's progress, such as a progress bar or a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

# One epoch's line: {"stage", "epoch", "step", "train": {metric: mean}, "validation": {...}}.
# "stage" is the phase's name, the key of earlier versions' work directories.
Row = dict[str, Any]


class Reporter(Protocol):
  """Receives a run's progress; it cannot change the run."""

  def begins_after(self, updates: int) -> None:
    """Number of updates already made; called before `phase_started` and `rolled_back`."""

  def phase_started(self, phase: str, steps: int, rows: list[Row]) -> None:
    """A phase starts or resumes; `rows` are the epochs before the checkpoint, or none."""

  def message(self, line: str) -> None:
    """A line of text for the user."""

  def stepped(self, metrics: Mapping[str, float], images: int) -> None:
    """One more update is finished; `metrics` are means over its `images`."""

  def epoch_ended(self, row: Row) -> None:
    """An epoch is finished."""

  def rolled_back(self, phase: str, rows: list[Row]) -> None:
    """The phase goes on from an earlier checkpoint; of its epochs, only `rows` remain valid."""

  def phase_ended(self, phase: str) -> None:
    """All updates are made and saved, or those before an interruption are."""


class Silent:
  """A reporter that prints and writes nothing."""

  _begins_after: int | None = None

  def begins_after(self, updates: int) -> None:
    """Keep the number for `updates_behind`."""
    self._begins_after = updates

  def updates_behind(self, rows: list[Row]) -> int:
    """Return the number of updates after which `phase_started` or `rolled_back` goes on.

    A checkpoint lies anywhere within an epoch; without `begins_after` it is the last epoch's end.
    """
    behind, self._begins_after = self._begins_after, None
    if behind is not None:
      return behind
    return rows[-1]["step"] if rows else 0

  def phase_started(self, phase: str, steps: int, rows: list[Row]) -> None:
    """Do nothing."""

  def message(self, line: str) -> None:
    """Do nothing."""

  def stepped(self, metrics: Mapping[str, float], images: int) -> None:
    """Do nothing."""

  def epoch_ended(self, row: Row) -> None:
    """Do nothing."""

  def rolled_back(self, phase: str, rows: list[Row]) -> None:
    """Do nothing."""

  def phase_ended(self, phase: str) -> None:
    """Do nothing."""


class Reporters:
  """Passes every report to several reporters, in order."""

  def __init__(self, reporters: Sequence[Reporter] = ()) -> None:
    self._reporters = reporters

  def begins_after(self, updates: int) -> None:
    """Pass on."""
    for reporter in self._reporters:
      reporter.begins_after(updates)

  def phase_started(self, phase: str, steps: int, rows: list[Row]) -> None:
    """Pass on."""
    for reporter in self._reporters:
      reporter.phase_started(phase, steps, rows)

  def message(self, line: str) -> None:
    """Pass on."""
    for reporter in self._reporters:
      reporter.message(line)

  def stepped(self, metrics: Mapping[str, float], images: int) -> None:
    """Pass on."""
    for reporter in self._reporters:
      reporter.stepped(metrics, images)

  def epoch_ended(self, row: Row) -> None:
    """Pass on."""
    for reporter in self._reporters:
      reporter.epoch_ended(row)

  def rolled_back(self, phase: str, rows: list[Row]) -> None:
    """Pass on."""
    for reporter in self._reporters:
      reporter.rolled_back(phase, rows)

  def phase_ended(self, phase: str) -> None:
    """Pass on."""
    for reporter in self._reporters:
      reporter.phase_ended(phase)
