"""The history of a run on disk: `metrics.jsonl` and TensorBoard events."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Mapping

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from jaxkd.errors import writing
from jaxkd.report.trackers import scalars
from jaxkd.train.reporting import Row, Silent

# Flushing waits for the disk, which may take longer than an epoch, so it is not done every epoch.
_SECONDS_UNFLUSHED = 30.0


class MetricsFile(Silent):
  """`metrics.jsonl`: one line per stage and epoch; no times, so equal runs write equal files.

  Checkpoints contain the rows, and the file is rewritten from them when a stage starts, so after
  any interruption it equals the file of an uninterrupted run.
  """

  def __init__(self, path: pathlib.Path) -> None:
    self._path = path
    self._rows: list[Row] = []
    self._earlier = 0  # number of rows of earlier stages

  def phase_started(self, stage: str, steps: int, rows: list[Row]) -> None:
    """Write all rows up to this stage's checkpoint."""
    self._earlier = len(self._rows)
    self.rolled_back(stage, rows)

  def rolled_back(self, stage: str, rows: list[Row]) -> None:
    """Write the rows up to the restored checkpoint."""
    self._rows[self._earlier :] = rows
    write_atomically(self._path, "".join(_line(row) for row in self._rows))

  def epoch_ended(self, row: Row) -> None:
    """Append one row."""
    self._rows.append(row)
    with writing(self._path), self._path.open("a") as file:
      file.write(_line(row))


class TensorBoard(Silent):
  """TensorBoard events under `directory/STAGE`: every metric of every row, and the speed.

  Events are written in the caller's thread. tensorboardX's SummaryWriter has a thread of its own,
  which ends when the disk is full; adding an event then blocks forever.
  """

  def __init__(self, directory: pathlib.Path) -> None:
    self._directory = directory
    self._folder = directory
    self._writer: EventsWriter | None = None
    self._flushed_at = 0.0
    self._since, self._images = time.monotonic(), 0

  def phase_started(self, stage: str, steps: int, rows: list[Row]) -> None:
    """Open the stage's events; TensorBoard hides older ones after the restored checkpoint."""
    done = self.updates_behind(rows)
    self._open(stage, done + 1 if done else None)

  def rolled_back(self, stage: str, rows: list[Row]) -> None:
    """Hide the events after the restored checkpoint."""
    self.phase_ended(stage)
    self._open(stage, self.updates_behind(rows) + 1)

  def _open(self, stage: str, purge: int | None) -> None:
    self._folder = self._directory / stage
    with writing(self._folder):
      self._folder.mkdir(parents=True, exist_ok=True)
      # The name has the time in seconds; the number keeps two files of one second apart.
      number = len(list(self._folder.glob("events*")))
      self._writer = EventsWriter(str(self._folder / "events"), f".{number:03d}")
    if purge is not None:
      self._write(Event(step=purge, session_log=SessionLog(status=SessionLog.START)))
    self._flush()
    self._since, self._images = time.monotonic(), 0

  def stepped(self, metrics: Mapping[str, float], images: int) -> None:
    """Count images for the speed."""
    self._images += images

  def epoch_ended(self, row: Row) -> None:
    """Write the scalars of one row."""
    values = scalars(row)
    seconds = time.monotonic() - self._since
    values["speed/images_per_second"] = self._images / seconds
    for name, value in values.items():
      self._write(Event(step=row["step"], summary=scalar(name, value)))
    if time.monotonic() - self._flushed_at > _SECONDS_UNFLUSHED:
      self._flush()
    self._since, self._images = time.monotonic(), 0

  def phase_ended(self, stage: str) -> None:
    """Close the stage's events."""
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
  """Replace a file atomically: a reader sees the old content or the new one.

  Missing parent folders are created.

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
