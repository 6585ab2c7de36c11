"""Runs under load (more devices than cores, slow data, frequent saves), and reproducibility."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxkd.models.torch.files import arrays_in

pytestmark = pytest.mark.faults

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 1000
# The real experiment, with data whose reads are slow.
LOADED = """
import dataclasses, pathlib, sys, time
from absl import logging
from rich.console import Console
from jaxkd.experiment import config, run
from jaxkd.data import RecordExamples, load
from jaxkd.runtime import devices

class Slow:
  def __init__(self, examples, seconds):
    self.examples, self.seconds = examples, seconds

  def __getitems__(self, keys):
    time.sleep(self.seconds * (1 + sum(keys) % 5))
    return [{"image": image} for image in self.examples.fetch(keys)]

def slow(examples, seconds):
  whole = examples.take(examples.indices.argsort())
  places = {int(index): place for place, index in enumerate(whole.indices)}
  class Found(Slow):
    def __getitems__(self, keys):
      return super().__getitems__([places[key] for key in keys])
  return RecordExamples(Found(whole, seconds), examples.labels, examples.indices)

def load_slowly(*args, **options):
  data = load(*args, **options)
  parts = {"train": 0.01, "validation": 0.2, "test": 0.2}
  return dataclasses.replace(data, **{n: slow(getattr(data, n), s) for n, s in parts.items()})

settings = config.base_config("kd")
settings.update({"batch_size": 64, "cpu_devices": 8, "baseline": False, "checkpoint_seconds": 1.0})
settings.data.update({"directory": sys.argv[1], "crop": 1})
settings.teacher.update({"model": "mlp", "epochs": 1})
settings.student.update({"model": "resnet8_w4", "epochs": EPOCHS})
devices.set_cpu_devices(settings.cpu_devices, settings.batch_size)
run.run(settings, pathlib.Path(sys.argv[2]), Console(), load_data=load_slowly)
"""
SMALL = [
  "--config.batch_size=32",
  "--config.checkpoint_seconds=0",
  "--config.data.per_class=8",
  "--config.data.teacher_per_class=16",
  "--config.teacher.model=mlp",
  "--config.teacher.epochs=1",
  "--config.student.model=resnet8_w4",
  "--config.student.epochs=2",
  "--config.baseline=False",
]
# For weights of magnitude 1 after 6 updates: sums over devices have another order.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return tmp_path_factory.mktemp("tfds")


def test_eight_devices_on_two_cores_do_not_deadlock(data, tmp_path, record_property):
  record_property(
    "fault", f"8 devices on {os.cpu_count()} cores, slow data, long evaluations, saves"
  )
  record_property("tries", 1)
  per_epoch = 21  # of 1293 images in batches of 64
  script = LOADED.replace("EPOCHS", str(-(-STEPS // per_epoch)))
  workdir = tmp_path / "run"
  started = time.monotonic()
  done = subprocess.run(
    [sys.executable, "-c", script, str(data), str(workdir)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=1500,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  summary = json.loads((workdir / "summary.json").read_text())
  made = summary["stages"]["distilled"]
  record_property(
    "outcome",
    f"{made['steps']} steps and {made['epochs']} evaluations in {time.monotonic() - started:.0f} s,"
    f" status {done.returncode}",
  )
  assert summary["devices"]["count"] == 8
  assert made["steps"] >= STEPS
  assert made["accuracy"] > 0.5


def trained(workdir, data, *flags):
  """Run the real script; return the student's weights file."""
  command = [sys.executable, "experiments/train.py", "--config", "configs/digits.py:kd"]
  command += ["--workdir", str(workdir), f"--config.data.directory={data}", *SMALL, *flags]
  environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
  environment["JAX_COMPILATION_CACHE_DIR"] = str(workdir.parent / "compiled")
  done = subprocess.run(
    command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return (workdir / "bundles/distilled/student/weights.safetensors").read_bytes()


def test_the_same_seed_gives_the_same_bits(data, tmp_path, record_property):
  record_property("fault", "the same command in two processes")
  record_property("tries", 3)
  one, other = (trained(tmp_path / name, data) for name in ("one", "other"))
  changed = trained(tmp_path / "third", data, "--config.seed=1")
  words = ["other bits", "the same bits"]
  outcome = f"{words[one == other]}; with another seed {words[one == changed]}"
  record_property("outcome", outcome)
  assert one == other
  assert changed != one


def test_any_number_of_devices_trains_the_same_weights(data, tmp_path, record_property):
  counts = (1, 2, 4, 8)
  record_property("fault", f"{', '.join(map(str, counts))} devices")
  record_property("tries", len(counts))
  found = {
    n: arrays_in(trained(tmp_path / str(n), data, f"--config.cpu_devices={n}")) for n in counts
  }
  furthest = {
    n: max(
      float(np.max(np.abs(arrays[name] - value) / np.maximum(1, np.abs(value))))
      for name, value in found[1].items()
    )
    for n, arrays in found.items()
  }
  each = ", ".join(f"{difference:.0e} with {n}" for n, difference in furthest.items() if n > 1)
  record_property("outcome", f"largest difference of a weight from one device's: {each}")
  assert max(furthest.values()) < TOLERANCE
