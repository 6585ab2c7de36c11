"""The command on the digits: its results, resuming, and bundles used by another run."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from jaxkd.export.bundles import load_bundle
from jaxkd.runtime.fast_compilation import fast_flags

ROOT = pathlib.Path(__file__).parents[1]
SMALL = [
  "--config.batch_size=32",
  "--config.cpu_devices=1",
  "--config.checkpoint_seconds=0",
  "--config.evaluate_every=1",
  "--config.data.per_class=8",
  "--config.data.teacher_per_class=16",
  "--config.teacher.model=resnet8_w8",
  "--config.teacher.epochs=1",
  "--config.student.model=resnet8_w4",
  "--config.student.epochs=2",
]
# Runs are short, and most of their time is compilation.
XLA_FLAGS = fast_flags()


@pytest.fixture(scope="module")
def command(tmp_path_factory):
  """command(method, workdir, *flags): the arguments and environment of a subprocess."""
  data = tmp_path_factory.mktemp("tfds")
  environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "TFDS_"))}
  environment |= {
    "XLA_FLAGS": XLA_FLAGS,
    "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }

  def make(method, workdir, *flags):
    arguments = [sys.executable, "experiments/train.py", "--config", f"configs/digits.py:{method}"]
    arguments += ["--workdir", str(workdir), f"--config.data.directory={data}", *SMALL, *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return {"args": arguments, "cwd": ROOT, "env": environment, **pipes}

  return make


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory):
  """(finished process, workdir) of one run from start to end."""
  workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
  done = subprocess.run(**command("kd", workdir), timeout=900)
  assert done.returncode == 0, done.stderr
  return done, workdir


def rows(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def summary(workdir):
  return json.loads((workdir / "summary.json").read_text())


def test_a_run_writes_all_its_results(uninterrupted):
  _, workdir = uninterrupted
  made = summary(workdir)
  assert json.loads((workdir / "config.json").read_text()) == made["config"]
  assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
  assert not list(workdir.rglob("*.partial"))
  epochs = [(row["stage"], row["epoch"], row["step"]) for row in rows(workdir)]
  # 160 examples for the teacher and 80 for the students, in batches of 32.
  students = [(name, epoch, 3 * epoch) for name in ("alone", "distilled") for epoch in (1, 2)]
  assert epochs == [("teacher", 1, 5), *students]
  assert set(rows(workdir)[-1]["train"]) >= {"loss", "kd_logit", "labels_logit", "accuracy"}
  for phase, predictor in (("teacher", "teacher"), ("alone", "student"), ("distilled", "student")):
    assert list((workdir / "tensorboard" / phase).glob("events*"))
    _, description = load_bundle(workdir / "bundles" / phase / predictor)
    assert description["test_accuracy"] == made["stages"][phase]["accuracy"]
    assert description["model"] == made["stages"][phase]["model"]
  roles = {phase: row["role"] for phase, row in made["stages"].items()}
  assert roles == {"teacher": "teacher", "alone": "baseline", "distilled": "student"}
  assert made["devices"]["count"] == 1
  assert made["comparison"]["difference"] == pytest.approx(
    made["stages"]["distilled"]["accuracy"] - made["stages"]["alone"]["accuracy"]
  )


def assert_table(text, workdir):
  for name in (
    "teacher",
    "student alone",
    "student, kd",
    "distilled - alone",
    "share of gap closed",
  ):
    assert name in text
  for phase in summary(workdir)["stages"].values():
    assert f"{phase['accuracy']:.2%}" in text
    assert f"{phase['parameters']:,}" in text


def test_without_a_terminal_the_log_is_short_and_plain_and_ends_in_the_table(uninterrupted):
  done, workdir = uninterrupted
  # Orbax's warning of a slow disk is justified when tests share the machine.
  warnings = done.stderr.splitlines()
  assert [line for line in warnings if "Waiting for previous save to complete" not in line] == []
  lines = done.stdout.splitlines()
  assert len(lines) < 40
  assert all(line.isprintable() for line in lines)
  assert lines[0].startswith("teacher: 5 steps")
  assert "alone: epoch 2, step 6/6, loss " in done.stdout
  assert "validation " in done.stdout
  assert_table("\n".join(lines[-14:]), workdir)


def test_the_same_command_again_shows_the_table_and_changes_nothing(command, uninterrupted):
  _, workdir = uninterrupted
  before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
  again = subprocess.run(**command("kd", workdir), timeout=600)
  assert (again.returncode, again.stderr) == (0, "")
  assert again.stdout.startswith(f"the run in {workdir} is complete\n")
  assert "steps" not in again.stdout
  assert_table(again.stdout, workdir)
  assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def kill_when(process, condition):
  """Kill the process as soon as `condition` holds; it must still be running."""
  deadline = time.monotonic() + 200
  while not condition():
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL


@pytest.mark.long
def test_a_killed_run_resumes_to_the_same_results(command, uninterrupted, tmp_path):
  _, whole = uninterrupted
  workdir = tmp_path / "killed"
  checkpoints = workdir / "checkpoints" / "alone"

  def has_checkpoint():
    return checkpoints.exists() and any(path.name.isdigit() for path in checkpoints.iterdir())

  process = subprocess.Popen(**command("kd", workdir))
  # The second phase is under way; the third has yet to be compiled.
  kill_when(process, has_checkpoint)
  assert not (workdir / "summary.json").exists()
  assert len(rows(workdir)) < len(rows(whole))

  resumed = subprocess.run(**command("kd", workdir), timeout=900)
  # Orbax may write there that it removes a partial checkpoint.
  assert resumed.returncode == 0, resumed.stderr
  assert (workdir / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
  took = {"seconds": None, "compile_seconds": None}
  one, other = ({**summary(w), **took} for w in (workdir, whole))
  assert one == other
  assert "teacher: 5 steps, resumed after 5\n" in resumed.stdout


@pytest.mark.long
def test_a_bundle_is_a_teacher_in_another_run_without_training_or_baseline(
  command, uninterrupted, tmp_path
):
  _, lender = uninterrupted
  bundle = lender / "bundles" / "teacher" / "teacher"
  workdir = tmp_path / "simkd"
  flags = [
    f"--config.teacher.bundle={bundle}",
    "--config.teacher.model=",
    "--config.baseline=False",
  ]
  done = subprocess.run(**command("simkd", workdir, *flags), timeout=900)
  assert (done.returncode, done.stderr) == (0, "")
  made, lent = summary(workdir)["stages"], summary(lender)["stages"]
  assert list(made) == ["teacher", "distilled"]
  trained = {**lent["teacher"], "epochs": 0, "steps": 0}
  del trained["train"]
  assert made["teacher"] == trained
  assert [row["stage"] for row in rows(workdir)] == ["distilled", "distilled"]
  assert summary(workdir)["comparison"] == {}
  assert "student alone" not in done.stdout
  # The student contains the teacher's classifier.
  student, _ = load_bundle(workdir / "bundles" / "distilled" / "student")
  teacher, _ = load_bundle(bundle)
  kept = student.variables["params"]["teacher"]["classifier"]["kernel"]
  assert (kept == teacher.variables["params"]["classifier"]["kernel"]).all()
