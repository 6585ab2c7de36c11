"""Two thousand steps: memory, threads and open files do not grow; nothing is compiled again."""

from __future__ import annotations

import gc
import os
import statistics
import threading

import jax
import pytest
from rich.console import Console

from jaxkd import report
from jaxkd.experiment import config, run

pytestmark = pytest.mark.faults

STEPS, PER_EPOCH = 2000, 5  # of 80 images in batches of 16
EPOCHS = STEPS // PER_EPOCH
# Growth of the resident set from a quarter of the run to its end. A program or a copy of the state
# kept after each of these 300 epochs would be more. Orbax keeps about a tenth of a MiB of each save
# of so many arrays, and the freed memory that malloc keeps varies by a few MiB.
TOLERANCE_MIB = 16.0


def resident_mib():
  with open("/proc/self/statm") as file:
    return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def open_files():
  return len(os.listdir("/proc/self/fd")) - 1  # without that of the listing itself


class Watch(report.Lines):
  """Records memory, threads and open files after every epoch."""

  def __init__(self, console):
    super().__init__(console)
    self.epochs, self.compiled = [], []
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def _listen(self, name, seconds, **about):
    if name.endswith("backend_compile_duration"):
      self.compiled.append(len(self.epochs))

  def epoch_ended(self, row):
    super().epoch_ended(row)
    if row["stage"] == "distilled":
      self.epochs.append((resident_mib(), threading.active_count(), open_files()))

  def end(self):
    jax.monitoring.unregister_event_duration_listener(self._listen)


def settings_for(directory, epochs):
  settings = config.base_config("kd")
  settings.update({"batch_size": 16, "devices": 1, "baseline": False, "checkpoint_seconds": 2.0})
  settings.data.update({"directory": str(directory), "per_class": 8, "teacher_per_class": 8})
  settings.teacher.update({"model": "mlp", "epochs": 1})
  settings.student.update({"model": "resnet8_w4", "epochs": epochs})
  return settings


@pytest.fixture
def watched(monkeypatch, tmp_path):
  """watched(epochs): the reporter of a run of so many epochs, with its records."""
  made = []

  def make(epochs):
    def watch(console):
      made.append(Watch(console))
      return made[-1]

    monkeypatch.setattr(run.report, "Lines", watch)
    settings = settings_for(tmp_path / "tfds", epochs)
    with open(os.devnull, "w") as nowhere:
      run.run(settings, tmp_path / f"run{epochs}", Console(file=nowhere))
    made[-1].end()
    gc.collect()
    return made[-1]

  return make


def test_two_thousand_steps_need_no_more_memory_than_five_hundred(watched, record_property):
  record_property("fault", f"{STEPS} steps with {EPOCHS} evaluations, saved every two seconds")
  record_property("tries", 1)
  watched(2)  # one-time resources: imports, thread pools
  before = threading.active_count(), open_files()
  watch = watched(EPOCHS)
  after = threading.active_count(), open_files()
  assert len(watch.epochs) == EPOCHS
  early, late = watch.epochs[EPOCHS // 4 : EPOCHS // 2], watch.epochs[-EPOCHS // 4 :]
  grown = statistics.median(e[0] for e in late) - statistics.median(e[0] for e in early[:20])
  compiled = [epoch for epoch in watch.compiled if epoch >= 1]
  # A save in progress has some of its own.
  threads, files = (min(e[i] for e in late) - min(e[i] for e in early) for i in (1, 2))
  record_property(
    "outcome",
    f"{grown:+.1f} MiB from step {STEPS // 4}, {len(compiled)} programs compiled after the first "
    f"epoch, {threads:+d} threads, {files:+d} files; at the end {after[0] - before[0]:+d} threads, "
    f"{after[1] - before[1]:+d} files",
  )
  assert grown < TOLERANCE_MIB
  assert not compiled
  assert threads <= 0 and files <= 0
  assert after[0] <= before[0] and after[1] <= before[1]
