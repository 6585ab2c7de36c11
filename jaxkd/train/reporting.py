"""What the loop tells whoever watches: a protocol, and its silent form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

# One epoch's line: {"stage", "epoch", "step", "train": {metric: mean}, "validation": {...}}.
# "stage" is the phase's name, as work directories of earlier versions have it.
Row = dict[str, Any]


class Reporter(Protocol):
  """Receives a run's progress. Nothing it does changes the run."""

  def begins_after(self, updates: int) -> None:
    """Before `phase_started` and `went_back`: how many updates the phase goes on after."""

  def phase_started(self, phase: str, steps: int, rows: list[Row]) -> None:
    """`rows` are the epochs already behind: none, or those before the checkpoint resumed from."""

  def told(self, line: str) -> None:
    """Something else that whoever watches may want to know, in words."""

  def stepped(self, metrics: Mapping[str, float], images: int) -> None:
    """One more update is finished: the means over its `images`."""

  def epoch_ended(self, row: Row) -> None:
    """An epoch is over."""

  def went_back(self, phase: str, rows: list[Row]) -> None:
    """The phase goes on from an earlier checkpoint; of its epochs, `rows` alone still count."""

  def phase_ended(self, phase: str) -> None:
    """All updates are made and saved, or those before an interruption are."""


class Silent:
  """A reporter that prints and writes nothing."""

  _begins_after: int | None = None

  def begins_after(self, updates: int) -> None:
    """Keeps the number for `updates_behind`."""
    self._begins_after = updates

  def updates_behind(self, rows: list[Row]) -> int:
    """How many updates `phase_started` or `went_back` goes on after.

    A checkpoint lies anywhere within an epoch; without `begins_after` it is the last epoch's end.
    """
    behind, self._begins_after = self._begins_after, None
    if behind is not None:
      return behind
    return rows[-1]["step"] if rows else 0

  def phase_started(self, phase: str, steps: int, rows: list[Row]) -> None:
    """Says nothing."""

  def told(self, line: str) -> None:
    """Says nothing."""

  def stepped(self, metrics: Mapping[str, float], images: int) -> None:
    """Says nothing."""

  def epoch_ended(self, row: Row) -> None:
    """Says nothing."""

  def went_back(self, phase: str, rows: list[Row]) -> None:
    """Says nothing."""

  def phase_ended(self, phase: str) -> None:
    """Says nothing."""
