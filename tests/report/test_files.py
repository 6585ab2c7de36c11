"""Metrics files and TensorBoard events, read back."""

import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxkd.errors import DiskError
from jaxkd.report import MetricsFile, TensorBoard


def events(folder):
  """Return the events of all files of a folder, oldest first."""
  found = []
  for file in sorted(folder.glob("events*"), key=lambda path: (path.stat().st_mtime_ns, path.name)):
    data = file.read_bytes()
    while data:
      (size,) = struct.unpack("Q", data[:8])
      found.append(Event.FromString(data[12 : 12 + size]))
      data = data[16 + size :]
  return found


def row(epoch):
  scores = {"student": {"accuracy": 0.5}}
  return {
    "stage": "alone",
    "epoch": epoch,
    "step": 3 * epoch,
    "train": {"loss": 1.5},
    "validation": scores,
  }


def test_tensorboard_has_every_metric_and_the_speed(tmp_path):
  board = TensorBoard(tmp_path)
  board.phase_started("alone", 6, [])
  for epoch in (1, 2):
    board.stepped({}, 32)
    board.epoch_ended(row(epoch))
  board.phase_ended("alone")
  first, *rest = events(tmp_path / "alone")
  assert first.file_version == "brain.Event:2"
  scalars = [(e.step, v.tag, v.simple_value) for e in rest for v in e.summary.value]
  assert [(step, tag) for step, tag, _ in scalars] == [
    (step, tag)
    for step in (3, 6)
    for tag in ("train/loss", "validation/student_accuracy", "speed/images_per_second")
  ]
  assert [value for _, tag, value in scalars if tag == "train/loss"] == [1.5, 1.5]


def test_tensorboard_hides_events_that_a_resumed_stage_repeats(tmp_path):
  board = TensorBoard(tmp_path)
  board.phase_started("alone", 6, [row(1)])
  board.phase_ended("alone")
  _, begins = events(tmp_path / "alone")
  assert (begins.step, begins.session_log.status) == (4, SessionLog.START)


@pytest.mark.parametrize(("rows", "updates"), [([], 2), ([1], 3), ([1], 5)])
def test_tensorboard_hides_events_after_a_checkpoint_within_an_epoch(tmp_path, rows, updates):
  for resume in ("phase_started", "rolled_back"):
    board = TensorBoard(tmp_path / resume)
    if resume == "rolled_back":
      board.phase_started("alone", 6, [])
    board.begins_after(updates)
    arguments = ("alone", 6) if resume == "phase_started" else ("alone",)
    getattr(board, resume)(*arguments, [row(epoch) for epoch in rows])
    board.phase_ended("alone")
    begins = events(tmp_path / resume / "alone")[-1]
    assert (begins.step, begins.session_log.status) == (updates + 1, SessionLog.START)


@pytest.mark.parametrize("make", [MetricsFile, TensorBoard])
def test_error_names_a_file_that_cannot_be_written(tmp_path, make):
  (tmp_path / "run").write_text("a file where the folder should be")
  reporter = make(tmp_path / "run" / "history")
  with pytest.raises(DiskError, match=f"^{tmp_path}/run/history.* cannot be written: "):
    reporter.phase_started("alone", 6, [])
