"""The real command with a loss or gradient that is not finite, for each policy.

FSP at its published weight, with a rate that is far too high and without warm-up, diverges in its
first stage within a few steps, as it did on Fashion-MNIST.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath
from orbax import checkpoint as ocp
from safetensors.numpy import load_file

from jaxkd.runtime.fast_compilation import fast_flags
from tests.faults.digits_runs import ended_after, finish, start_two

pytestmark = pytest.mark.faults

ROOT = pathlib.Path(__file__).parents[2]
SMALL = [
  "--config.batch_size=32",
  "--config.cpu_devices=1",
  "--config.checkpoint_seconds=0",
  "--config.evaluate_every=2",
  "--config.data.per_class=16",
  "--config.data.teacher_per_class=16",
  "--config.teacher.model=resnet8_w8",
  "--config.teacher.epochs=1",
  "--config.student.model=resnet8_w4",
  "--config.student.epochs=2",
  "--config.student.warmup_epochs=0.0",
  "--config.baseline=False",
]
TOO_FAST = ["--config.method.first_epochs=2", "--config.student.learning_rate=3.0"]
# A config file in place of configs/digits.py, whose loss is NaN at one step.
POISONED = """
import jax.numpy as jnp

from configs.digits import get_config
from jaxkd.methods import Distillation

terms = Distillation.terms


def poisoned(self, student, teacher, batch, context):
  factor = jnp.where(context.step == 7, jnp.nan, 1.0)
  found = terms(self, student, teacher, batch, context)
  return {name: factor * one for name, one in found.items()}


Distillation.terms = poisoned
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
  """command(workdir, *flags): the arguments and environment of a subprocess."""
  common = tmp_path_factory.mktemp("common")
  environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "TFDS_"))}
  environment |= {
    "XLA_FLAGS": fast_flags(),
    "JAX_COMPILATION_CACHE_DIR": str(common / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "PYTHONPATH": str(ROOT),
  }

  def make(workdir, *flags, config="configs/digits.py:fsp"):
    arguments = [sys.executable, "experiments/train.py", "--config", config]
    arguments += ["--workdir", str(workdir), f"--config.data.directory={common / 'tfds'}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return {"args": [*arguments, *SMALL, *flags], "cwd": ROOT, "env": environment, **pipes}

  return make


@pytest.fixture(scope="module")
def run(command):
  """run(workdir, *flags): the finished subprocess."""
  return lambda *args, **options: subprocess.run(**command(*args, **options), timeout=900)


def rows(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def not_finite(workdir):
  """Return the number of saved arrays, and the names of those that are not finite."""
  arrays = {}
  for item in workdir.glob("checkpoints/*/[0-9]*/*/_METADATA"):
    tree = ocp.StandardCheckpointer().restore(epath.Path(item.parent.absolute()))
    for path, leaf in jax.tree.leaves_with_path(tree):
      arrays[f"{item.parent}{jax.tree_util.keystr(path)}"] = leaf
  assert arrays
  for file in workdir.rglob("*.safetensors"):
    arrays |= {f"{file}/{name}": leaf for name, leaf in load_file(file).items()}
  return len(arrays), [name for name, leaf in arrays.items() if not np.isfinite(leaf).all()]


def assert_one_error(done):
  """Check that the command failed with one error line; return the line."""
  assert done.returncode == 1
  assert "Traceback" not in done.stderr
  [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
  return line


def test_stop(run, tmp_path, record_property):
  record_property("fault", "FSP diverges, nonfinite=stop")
  record_property("tries", 1)
  workdir = tmp_path / "run"
  done = run(workdir, *TOO_FAST)
  line = assert_one_error(done)
  found = re.match(
    r"error: phase 'warmup': step (\d+) of 10 is not finite: .*fsp_feature.* of 'student'.*"
    r"Try a lower learning_rate",
    line,
  )
  assert found, line
  step = int(found[1])
  steps = [int(path.name) for path in (workdir / "checkpoints" / "warmup").glob("[0-9]*")]
  assert max(steps) == step - 1
  count, wrong = not_finite(workdir)
  assert wrong == []
  assert not (workdir / "summary.json").exists()
  # The same command resumes from the checkpoint and stops at the same step.
  again = assert_one_error(run(workdir, *TOO_FAST))
  assert f"'warmup': step {step} of 10 is not finite" in again
  record_property(
    "outcome", f"stopped at step {step}, naming fsp_feature and 'student'; {count} arrays finite"
  )


ROLLBACK = [
  *TOO_FAST,
  "--config.nonfinite=rollback",
  "--config.rollback_factor=0.1",
  "--config.rollbacks=4",
]


@pytest.fixture(scope="module")
def rolled_back(run, tmp_path_factory):
  """(output, work directory) of an uninterrupted run."""
  workdir = tmp_path_factory.mktemp("rollback") / "run"
  done = run(workdir, *ROLLBACK)
  assert done.returncode == 0, done.stderr
  return done.stdout, workdir


def test_rollback(rolled_back, record_property):
  record_property("fault", "FSP diverges, nonfinite=rollback")
  record_property("tries", 1)
  output, workdir = rolled_back
  lines = [line for line in output.splitlines() if "back to step" in line]
  assert lines and all("fsp_feature" in line or "'student'" in line for line in lines)
  count, wrong = not_finite(workdir)
  assert wrong == []
  made = rows(workdir)
  epochs = [(row["stage"], row["epoch"]) for row in made]
  stages = [("warmup", 1), ("warmup", 2), ("distilled", 1), ("distilled", 2)]
  assert epochs == [("teacher", 1), *stages]
  rollbacks = sum(row.get("rollbacks", 0) for row in made if row["epoch"] == 2)
  assert rollbacks == len(lines)
  accuracy = json.loads((workdir / "summary.json").read_text())["stages"]["distilled"]["accuracy"]
  record_property(
    "outcome", f"{len(lines)} rollbacks, then to the end ({accuracy:.1%}); {count} arrays finite"
  )


def test_a_run_killed_after_a_rollback_ends_in_the_same_bits(
  command, run, rolled_back, tmp_path, record_property
):
  record_property("fault", "SIGKILL at once after a rollback")
  record_property("tries", 1)
  _, whole = rolled_back
  workdir = tmp_path / "killed"
  with subprocess.Popen(**command(workdir, *ROLLBACK)) as process:
    assert any("back to step" in line for line in process.stdout)
    process.kill()
  assert not (workdir / "summary.json").exists()
  resumed = run(workdir, *ROLLBACK)
  assert resumed.returncode == 0, resumed.stderr
  assert (workdir / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
  files = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors"))
  assert files
  same = [(workdir / file).read_bytes() == (whole / file).read_bytes() for file in files]
  record_property("outcome", f"resumed; {sum(same)} of {len(same)} networks are the same bits")
  assert all(same)


def test_two_processes_roll_back_together(tmp_path, record_property):
  record_property("fault", "FSP diverges in two processes, nonfinite=rollback")
  record_property("tries", 1)
  workdir = tmp_path / "run"
  runs = start_two(workdir, *SMALL, *ROLLBACK, method="fsp")
  with ended_after(*runs):
    output, silent = finish(*runs)
  lines = [line for line in output.splitlines() if "back to step" in line]
  assert lines and "back to step" not in silent
  count, wrong = not_finite(workdir)
  assert wrong == []
  assert [row["stage"] for row in rows(workdir)] == ["teacher", *2 * ["warmup"], *2 * ["distilled"]]
  record_property("outcome", f"{len(lines)} rollbacks, then to the end; {count} arrays finite")


def test_skip_is_an_error_if_a_whole_epoch_is_skipped(run, tmp_path, record_property):
  record_property("fault", "FSP diverges for good, nonfinite=skip")
  record_property("tries", 1)
  workdir = tmp_path / "run"
  done = run(workdir, *TOO_FAST, "--config.nonfinite=skip")
  line = assert_one_error(done)
  assert re.search(r"step 10 of 10 is not finite: .*, as were all 5 of this epoch", line), line
  assert done.stdout.count("such steps are skipped") == 1
  count, wrong = not_finite(workdir)
  assert wrong == []
  skipped = [row["skipped"] for row in rows(workdir) if row["stage"] == "warmup"]
  record_property(
    "outcome", f"{skipped[0] + 5} steps skipped, then an error; {count} arrays finite"
  )


def test_skip_continues_after_a_skipped_step(run, tmp_path, record_property):
  record_property("fault", "a loss is NaN at one step, nonfinite=skip")
  record_property("tries", 1)
  config = tmp_path / "poisoned.py"
  config.write_text(POISONED)
  workdir = tmp_path / "run"
  done = run(workdir, "--config.nonfinite=skip", config=f"{config}:kd")
  assert done.returncode == 0, done.stderr
  [skipping] = [line for line in done.stdout.splitlines() if "such steps are skipped" in line]
  assert "phase 'distilled': step 8 of 10 is not finite: the term kd_logit, " in skipping
  assert "the gradient of 'student'" in skipping
  skipped = {(row["stage"], row["epoch"]): row.get("skipped", 0) for row in rows(workdir)}
  assert skipped == {("teacher", 1): 0, ("distilled", 1): 0, ("distilled", 2): 1}
  count, wrong = not_finite(workdir)
  assert wrong == []
  record_property("outcome", f"1 step skipped, then to the end; {count} arrays finite")
