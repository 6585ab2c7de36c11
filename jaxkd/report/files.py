"""A run's history on disk: `metrics.jsonl`, and TensorBoard events."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Mapping

import tensorboardX

from jaxkd.train.reporting import Row, Silent


class MetricsFile(Silent):
  """`metrics.jsonl`: one line per stage and epoch, a function of the run alone (no times).

  The rows travel with the checkpoints, and the file is written anew from them when a stage
  starts: after any interruption it equals that of an uninterrupted run.
  """

  def __init__(self, path: pathlib.Path) -> None:
    self._path = path
    self._rows: list[Row] = []
    self._behind = 0  # rows of earlier stages

  def stage_started(self, stage: str, steps: int, rows: list[Row]) -> None:
    """Writes all rows known so far."""
    self._behind = len(self._rows)
    self.went_back(stage, rows)

  def went_back(self, stage: str, rows: list[Row]) -> None:
    """Writes the rows that still count."""
    self._rows[self._behind :] = rows
    write_atomically(self._path, "".join(_line(row) for row in self._rows))

  def epoch_ended(self, row: Row) -> None:
    """Appends one row."""
    self._rows.append(row)
    with self._path.open("a") as file:
      file.write(_line(row))


class TensorBoard(Silent):
  """Events under `directory/STAGE`: every metric of every row, and the speed."""

  def __init__(self, directory: pathlib.Path) -> None:
    self._directory = directory
    self._writer: tensorboardX.SummaryWriter | None = None
    self._since, self._images = time.monotonic(), 0

  def stage_started(self, stage: str, steps: int, rows: list[Row]) -> None:
    """Opens the stage's events; those after the checkpoint resumed from are hidden."""
    self._open(stage, rows[-1]["step"] + 1 if rows else None)

  def went_back(self, stage: str, rows: list[Row]) -> None:
    """Hides the events after the checkpoint gone back to."""
    self.stage_ended(stage)
    self._open(stage, rows[-1]["step"] + 1 if rows else 1)

  def _open(self, stage: str, purge: int | None) -> None:
    self._writer = tensorboardX.SummaryWriter(str(self._directory / stage), purge_step=purge)
    self._since, self._images = time.monotonic(), 0

  def stepped(self, metrics: Mapping[str, float], images: int) -> None:
    """Counts images for the speed."""
    self._images += images

  def epoch_ended(self, row: Row) -> None:
    """Writes one row's scalars."""
    assert self._writer is not None
    for name, value in row["train"].items():
      self._writer.add_scalar(f"train/{name}", value, row["step"])
    for predictor, scores in row.get("validation", {}).items():
      for name, value in scores.items():
        self._writer.add_scalar(f"validation/{predictor}_{name}", value, row["step"])
    seconds = time.monotonic() - self._since
    self._writer.add_scalar("speed/images_per_second", self._images / seconds, row["step"])
    self._since, self._images = time.monotonic(), 0

  def stage_ended(self, stage: str) -> None:
    """Closes the stage's events."""
    assert self._writer is not None
    self._writer.close()


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Writes a file that is either the old one or the new one, whenever it is read.

  Its folder is made if it is not there.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + ".partial")
  partial.write_text(text)
  partial.replace(path)


def _line(row: Row) -> str:
  return json.dumps(row, sort_keys=True) + "\n"
