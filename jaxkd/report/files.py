"""A run's history on disk: `metrics.jsonl`, and TensorBoard events."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Mapping

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from jaxkd.errors import writing
from jaxkd.train.reporting import Row, Silent

# Flushing waits for the disk, and an epoch may take less.
_SECONDS_UNFLUSHED = 30.0


class MetricsFile(Silent):
  """`metrics.jsonl`: one line per stage and epoch, a function of the run alone (no times).

  The rows travel with the checkpoints, and the file is written anew from them when a stage
  starts: after any interruption it equals that of an uninterrupted run.
  """

  def __init__(self, path: pathlib.Path) -> None:
    self._path = path
    self._rows: list[Row] = []
    self._behind = 0  # rows of earlier stages

  def phase_started(self, stage: str, steps: int, rows: list[Row]) -> None:
    """Writes all rows known so far."""
    self._behind = len(self._rows)
    self.rolled_back(stage, rows)

  def rolled_back(self, stage: str, rows: list[Row]) -> None:
    """Writes the rows that still count."""
    self._rows[self._behind :] = rows
    write_atomically(self._path, "".join(_line(row) for row in self._rows))

  def epoch_ended(self, row: Row) -> None:
    """Appends one row."""
    self._rows.append(row)
    with writing(self._path), self._path.open("a") as file:
      file.write(_line(row))


class TensorBoard(Silent):
  """Events under `directory/STAGE`: every metric of every row, and the speed.

  Written by the caller's own thread: that of tensorboardX's SummaryWriter dies of a full disk, and
  whoever then hands it an event waits for good.
  """

  def __init__(self, directory: pathlib.Path) -> None:
    self._directory = directory
    self._folder = directory
    self._writer: EventsWriter | None = None
    self._flushed_at = 0.0
    self._since, self._images = time.monotonic(), 0

  def phase_started(self, stage: str, steps: int, rows: list[Row]) -> None:
    """Opens the stage's events; those after the checkpoint resumed from are hidden."""
    behind = self.updates_behind(rows)
    self._open(stage, behind + 1 if behind else None)

  def rolled_back(self, stage: str, rows: list[Row]) -> None:
    """Hides the events after the checkpoint gone back to."""
    self.phase_ended(stage)
    self._open(stage, self.updates_behind(rows) + 1)

  def _open(self, stage: str, purge: int | None) -> None:
    self._folder = self._directory / stage
    with writing(self._folder):
      self._folder.mkdir(parents=True, exist_ok=True)
      # Its name has the time in seconds: without a number, a second one would write over the first.
      number = len(list(self._folder.glob("events*")))
      self._writer = EventsWriter(str(self._folder / "events"), f".{number:03d}")
    if purge is not None:
      self._write(Event(step=purge, session_log=SessionLog(status=SessionLog.START)))
    self._flush()
    self._since, self._images = time.monotonic(), 0

  def stepped(self, metrics: Mapping[str, float], images: int) -> None:
    """Counts images for the speed."""
    self._images += images

  def epoch_ended(self, row: Row) -> None:
    """Writes one row's scalars."""
    values = {f"train/{name}": value for name, value in row["train"].items()}
    for predictor, scores in row.get("validation", {}).items():
      values |= {f"validation/{predictor}_{name}": value for name, value in scores.items()}
    seconds = time.monotonic() - self._since
    values["speed/images_per_second"] = self._images / seconds
    for name, value in values.items():
      self._write(Event(step=row["step"], summary=scalar(name, value)))
    if time.monotonic() - self._flushed_at > _SECONDS_UNFLUSHED:
      self._flush()
    self._since, self._images = time.monotonic(), 0

  def phase_ended(self, stage: str) -> None:
    """Closes the stage's events."""
    assert self._writer is not None
    with writing(self._folder):
      self._writer.close()

  def _write(self, event: Event) -> None:
    assert self._writer is not None
    event.wall_time = time.time()
    with writing(self._folder):
      self._writer.write_event(event)

  def _flush(self) -> None:
    assert self._writer is not None
    with writing(self._folder):
      self._writer.flush()
    self._flushed_at = time.monotonic()


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Writes a file that is either the old one or the new one, whenever it is read.

  Its folder is made if it is not there.

  Raises:
    DiskError: if it cannot be written.
  """
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def _line(row: Row) -> str:
  return json.dumps(row, sort_keys=True) + "\n"
