"""The real script on wrong command lines: one error line, within seconds after its imports."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.faults

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 5.0
KD, SIMKD = (["--config", f"configs/digits.py:{method}"] for method in ("kd", "simkd"))

# Name of the mistake -> the arguments, and the beginning of the line after "error: ".
COMMANDS = {
  "method": (["--config", "configs/digits.py:simkdd"], "unknown method 'simkdd': did you mean"),
  "sum": (["--config", "configs/digits.py:kd+dml"], "method.name='kd+dml': 'dml' cannot be added"),
  "pair": (["--config", "configs/cifar100.py:kd@vgg13-vgg9"], "unknown pair 'vgg13-vgg9': did you"),
  "field": ([*KD, "--config.student.learning_rat=1"], "unknown field of student 'learning_rat'"),
  "type": ([*KD, "--config.batch_size=abc"], "flag --config.batch_size=abc: invalid literal"),
  "tuple": ([*KD, "--config.student.drops=abc"], ""),
  "range": ([*KD, "--config.method.temperature=0"], "method.temperature=0.0: expected a number >"),
  "infinite": ([*KD, "--config.student.learning_rate=inf"], "student.learning_rate=inf: expected"),
  "int64": ([*KD, "--config.seed=99999999999"], "seed=99999999999: expected an integer >= 0"),
  "model": ([*KD, "--config.student.model=resnet9"], "unknown model 'resnet9': did you mean"),
  "stage": ([*SIMKD, "--config.method.stage=stage9"], "unknown stage of the student 'stage9'"),
  "data set": (
    [*KD, "--config.data.name=digit"],
    "unknown data set 'digit': did you mean 'digits'",
  ),
  "batch": (
    [*KD, "--config.batch_size=30", "--config.cpu_devices=4"],
    "batch_size=30: not divisibl",
  ),
  "bundle": ([*KD, "--config.teacher.bundle=nowhere"], "nowhere is not a bundle: no model.json"),
  "momentum": (
    [*KD, "--config.student.nesterov=True", "--config.student.momentum=0"],
    "student.nesterov=True: needs momentum > 0, got student.momentum=0",
  ),
  "cache": (
    [*KD, "--config.cached_targets=True", "--config.data.mixup=0.2"],
    "data.mixup=0.2: expected 0 with cached_targets=True",
  ),
  "argument": ([*KD, "digits"], "unexpected argument 'digits': every setting is a --flag"),
  "flag": ([*KD, "--wrkdir=x"], "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
}
IMPORTS = """
import sys
from absl import app, flags, logging
from ml_collections import config_flags
from jaxkd.experiment import config, overview, run
import tensorflow_datasets, grain
"""


def run(arguments):
  """Run a command; return the finished process and the seconds it took."""
  started = time.monotonic()
  done = subprocess.run(
    [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
  )
  return done, time.monotonic() - started


def test_wrong_command_lines_end_in_one_line(tmp_path, record_property):
  record_property("fault", "wrong command lines")
  record_property("tries", len(COMMANDS))
  data = tmp_path / "tfds"
  prepared, _ = run(["-c", f"from jaxkd.data import load; load('digits', directory={str(data)!r})"])
  assert prepared.returncode == 0, prepared.stderr
  imported, importing = run(["-c", IMPORTS])
  assert imported.returncode == 0, imported.stderr
  faults, slowest = [], 0.0
  for name, (arguments, beginning) in COMMANDS.items():
    workdir = tmp_path / "run"
    command = ["experiments/train.py", *arguments, "--workdir", str(workdir)]
    # Three tries, as another load on the machine may slow down one of them.
    for _ in range(3):
      done, seconds = run([*command, f"--config.data.directory={data}"])
      if seconds - importing <= SECONDS:
        break
      _, importing = run(["-c", IMPORTS])
    slowest = max(slowest, seconds - importing)
    one_line = done.stderr.count("\n") == 1 and done.stderr.startswith(f"error: {beginning}")
    if not one_line or not done.returncode or done.stdout or workdir.exists():
      faults.append(f"{name}: {done.returncode} {done.stdout} {done.stderr[:500]!r}")
    elif seconds - importing > SECONDS:
      faults.append(f"{name}: took {seconds:.1f} s, of which imports {importing:.1f} s")
  record_property(
    "outcome",
    f"{len(COMMANDS) - len(faults)} one line each, at most {slowest:.1f} s after imports",
  )
  assert not faults, "\n".join(faults)
