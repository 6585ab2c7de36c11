"""Sweeps: their runs, the order of runs, the workers, and reports of failures."""

import contextlib
import functools
import io
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import pytest
from rich.console import Console

from jaxkd.errors import ConfigError
from jaxkd.experiment import overrides, sweep, workers
from jaxkd.experiment import run as experiment
from jaxkd.experiment.sweep import Job
from jaxkd.experiment.workers import Ended, Slot, Workers

ROOT = pathlib.Path(__file__).parent.parent
GET_CONFIG = overrides.load_module(ROOT / "configs/digits.py").get_config
SMALL = ("data.validation=0.0", "data.per_class=8", "student.model=mlp", "student.epochs=1")


def settings_for(name="alone", *changes):
  return overrides.variant(GET_CONFIG, name, [*SMALL, *changes])


@pytest.fixture(autouse=True)
def this_process_as_it_was():
  """Restore the compilation cache, and initialise the devices before a sweep could."""
  jax.devices()
  before = jax.config.jax_compilation_cache_dir
  yield
  jax.config.update("jax_compilation_cache_dir", before)


def swept(jobs, home, **options):
  """Run a sweep; return (printed lines, the error raised or None)."""
  console = Console(file=io.StringIO(), width=60)
  try:
    sweep.run_all(jobs, compiled=home / "compiled", console=console, **options)
    error = None
  except (ConfigError, RuntimeError) as raised:
    error = raised
  return console.file.getvalue().splitlines(), error


@pytest.fixture
def made(monkeypatch):
  """Replace training; return the list of folders of the runs made. "bad..." ones fail."""
  folders = []

  def run(settings, folder, console, *, load_data):
    if folder.name == "bad-luck":
      raise OSError("the disk\nis full")
    if folder.name.startswith("bad"):
      raise ConfigError("student.model='bad'")
    folders.append(folder)
    result = {"predictor": "student", "test": {"student": {"accuracy": 0.75}}}
    summary = {"stages": {"distilled": result}}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings.to_dict()))
    (folder / "summary.json").write_text(json.dumps(summary))
    return summary

  monkeypatch.setattr(experiment, "run", run)
  return folders


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
  """(folder, printed lines, error) of a sweep whose one worker succeeds and the other fails."""
  home = tmp_path_factory.mktemp("sweep")
  jobs = [
    Job(settings_for(), home / "seed0" / "good"),
    Job(settings_for("alone", "accumulate=7"), home / "seed0" / "bad"),
  ]
  return home, *swept(jobs, home, workers=2)


def accuracy(folder):
  return json.loads((folder / "summary.json").read_text())["stages"]["alone"]["accuracy"]


@pytest.mark.long
def test_a_worker_trains_as_this_process_does(two_workers, tmp_path):
  home, *_ = two_workers
  lines, error = swept([Job(settings_for(), tmp_path / "good")], tmp_path, workers=1)
  assert error is None
  assert accuracy(home / "seed0" / "good") == pytest.approx(accuracy(tmp_path / "good"), abs=0.006)
  assert lines[-1].startswith(f"[1/1] good: {100 * accuracy(tmp_path / 'good'):.2f}% in ")


@pytest.mark.long
def test_a_failed_run_is_named_and_the_others_in_progress_are_finished(two_workers):
  home, lines, error = two_workers
  message = "seed0/bad: batch_size=64: not divisible by "
  assert isinstance(error, ConfigError) and str(error).startswith(message)
  assert lines[0].startswith("2 runs by 2 workers; logs in ")
  # Two workers end in either order.
  failed, finished = sorted(lines[1:], key=lambda line: "failed" not in line)
  made = lines.index(failed) - 1
  assert failed.startswith(f"[{made}/2] seed0/bad: failed: batch_size=64: ")
  assert finished.startswith(f"[1/2] seed0/good: {100 * accuracy(home / 'seed0/good'):.2f}% in ")


def test_output_of_a_run_goes_to_its_own_log(two_workers):
  home, *_ = two_workers
  log = (home / "logs" / "seed0,good.txt").read_text()
  assert "alone: 2 steps" in log and "digits, seed 0" in log  # 80 images in batches of 64
  assert sorted(path.name for path in (home / "seed0").iterdir()) == ["good"]


def test_the_same_command_again_starts_nothing(made, monkeypatch, tmp_path):
  jobs = [Job(settings_for(), tmp_path / name) for name in ("one", "two")]
  assert swept(jobs, tmp_path, workers=1)[1] is None
  for place in ("slots", "_make", "_prepare_jax"):
    monkeypatch.delattr(sweep, place)
  assert swept(jobs, tmp_path) == (["2 of 2 runs are complete"], None)


def test_a_run_waits_for_the_runs_it_comes_after(made, tmp_path):
  student, alone, teacher, school = (tmp_path / x for x in ("kd", "alone", "teacher", "school"))
  settings = settings_for()
  jobs = [Job(settings, student, (teacher,)), Job(settings, alone)]
  jobs += [Job(settings, teacher, (school,)), Job(settings, school)]
  assert swept(jobs, tmp_path, workers=1)[1] is None
  assert made == [school, teacher, student, alone]


def test_a_folder_planned_twice_is_made_once_after_the_runs_of_both(made, tmp_path):
  settings = settings_for("kd", "method.temperature=2.0")
  jobs = [Job(settings, tmp_path / "kd") for _ in range(2)]
  jobs.append(Job(settings, tmp_path / "kd", (tmp_path / "teacher",)))
  jobs.append(Job(settings_for("teacher"), tmp_path / "teacher"))
  assert swept(jobs, tmp_path, workers=1)[1] is None
  assert [folder.name for folder in made] == ["teacher", "kd"]


@pytest.mark.parametrize("name", ["bad", "bad-luck"])
def test_after_a_failure_nothing_starts_and_the_same_call_resumes(made, tmp_path, name):
  names = ("first", name, "last")
  jobs = [Job(settings_for(), tmp_path / each) for each in names]
  lines, error = swept(jobs, tmp_path, workers=1)
  assert [folder.name for folder in made] == ["first"]
  if name == "bad":
    assert isinstance(error, ConfigError) and str(error) == "bad: student.model='bad'"
  else:
    assert isinstance(error, RuntimeError) and str(error) == "bad-luck: OSError: the disk"
    assert "Traceback (most recent call last):" in lines
  assert lines[-1] == f"[1/3] {name}: failed: {str(error).partition(': ')[2]}"

  jobs[1] = Job(settings_for(), tmp_path / "better")
  lines, error = swept(jobs, tmp_path, workers=1)
  assert error is None
  assert lines[0] == "1 of 3 runs are complete"
  assert [folder.name for folder in made] == ["first", "better", "last"]


MISTAKES = {
  "settings": "x: student.epochs=0: expected an integer >= 1 and < 2",
  "another's folder": "workdir {0}/full is not empty and holds no run; choose another",
  "two settings": "{0}/kd is planned twice, with different settings",
  "missing job": "x needs the run in {0}/nowhere, which is not complete",
  "circle": "runs that need each other: x, y, x",
  "devices": "x: devices=2 needs workers=1, not 2",
  "model": "x: unknown model 'resnet9': did you mean 'resnet8' or ",
  "data set": "unknown data set of x: 'digit': did you mean 'digits'? known: ",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_reported_before_anything_starts(made, tmp_path, mistake):
  settings = settings_for()
  x, y, full = (tmp_path / name for name in ("x", "y", "full"))
  wrong, options = {
    "settings": ([Job(GET_CONFIG("alone"), x)], {}),
    "another's folder": ([Job(settings, full)], {}),
    "two settings": ([Job(settings_for("alone", "seed=3"), tmp_path / "kd")], {}),
    "missing job": ([Job(settings, x, (tmp_path / "nowhere",))], {}),
    "circle": ([Job(settings, x, (y,)), Job(settings, y, (x,))], {}),
    "devices": ([Job(settings_for("alone", "devices=2"), x)], {"workers": 2}),
    "model": ([Job(GET_CONFIG("kd"), x)], {}),
    "data set": ([Job(GET_CONFIG("alone"), x)], {}),
  }[mistake]
  if mistake == "settings":
    wrong[0].settings.student.epochs = 0
  elif mistake == "model":
    wrong[0].settings.teacher.model = "resnet9"
  elif mistake == "data set":
    wrong[0].settings.data.name = "digit"
  full.mkdir()
  (full / "thesis.tex").write_text("everything")
  jobs = [Job(settings, tmp_path / "kd"), *wrong]
  lines, error = swept(jobs, tmp_path, **{"workers": 1, **options})
  assert isinstance(error, ConfigError)
  whole = mistake not in ("circle", "settings", "model", "data set")
  assert str(error) == MISTAKES[mistake].format(tmp_path) or not whole
  assert str(error).startswith(MISTAKES[mistake].format(tmp_path).partition(" x, y")[0])
  assert (lines, made) == ([], [])


def test_every_worker_has_its_own_cores(monkeypatch):
  monkeypatch.setattr(workers, "_hardware", lambda: ("cpu", 1))
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 0, 2}, raising=False)
  assert [slot.cores for slot in workers.slots(0, 9)] == [(0,), (2,), (5,)]
  assert [slot.cores for slot in workers.slots(0, 2)] == [(0, 5), (2,)]
  assert [slot.cores for slot in workers.slots(4, 9)] == [(0,), (2,), (5,), (0,)]
  assert workers.slots(1, 9) == []
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
  assert workers.slots(0, 9) == []


def test_every_worker_sees_one_accelerator(monkeypatch):
  monkeypatch.setattr(workers, "_hardware", lambda: ("gpu", 2))
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
  seen = [slot.environment for slot in workers.slots(0, 9)]
  assert seen == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
  seen = [slot.environment for slot in workers.slots(3, 9)]
  assert [each["CUDA_VISIBLE_DEVICES"] for each in seen] == ["4", "7", "4"]
  # Two share the first.
  assert {each["XLA_PYTHON_CLIENT_MEM_FRACTION"] for each in seen} == {"0.450"}

  monkeypatch.setattr(workers, "_hardware", lambda: ("tpu", 4))
  seen = [slot.environment for slot in workers.slots(0, 9)]
  assert [each["TPU_VISIBLE_CHIPS"] for each in seen] == ["0", "1", "2", "3"]
  assert {each["TPU_PROCESS_BOUNDS"] for each in seen} == {"1,1,1"}


def test_a_worker_has_its_slots_environment_and_ends_with_the_block(monkeypatch):
  monkeypatch.delenv("JAXKD_TEST", raising=False)
  slots = [Slot((), {"JAXKD_TEST": "7"}), Slot((), {"JAXKD_TEST": "8"})]
  with (
    contextlib.suppress(KeyboardInterrupt),
    Workers(slots, functools.partial, os.getenv) as team,
  ):
    team.give("JAXKD_TEST")
    assert (team.idle, list(team.results()), team.idle) == (1, [("JAXKD_TEST", "7")], 2)
    assert "JAXKD_TEST" not in os.environ
    processes = list(team._processes.values())
    raise KeyboardInterrupt
  assert None not in [process.exitcode for process in processes]


def test_a_worker_uses_its_cores_only():
  core = max(os.sched_getaffinity(0))
  with Workers([Slot((core,), {})], functools.partial, os.sched_getaffinity) as team:
    team.give(0)
    assert list(team.results()) == [(0, {core})]


def test_results_come_with_their_task_and_a_dead_worker_is_reported():
  with Workers([Slot((), {})] * 2, functools.partial, os._exit) as team:
    team.give(7)
    team.give(9)
    found = []
    while len(found) < 2:
      found += team.results()
    assert sorted(found) == [(7, Ended(7)), (9, Ended(9))]
    assert team.idle == 0


KILLED = """
import functools, os, signal, time
from jaxkd.experiment.workers import Slot, Workers
if __name__ == "__main__":
  with Workers([Slot((), {})], functools.partial, time.sleep) as team:
    team.give(1000)
    (process,) = team._processes.values()
    print(process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_when_the_command_is_killed(tmp_path):
  (tmp_path / "killed.py").write_text(KILLED)
  command = [sys.executable, str(tmp_path / "killed.py")]
  # The worker holds the pipe open: reading ends when the worker has ended, too.
  done = subprocess.run(command, stdout=subprocess.PIPE, timeout=600, check=False)
  assert done.returncode == -signal.SIGKILL
  assert int(done.stdout) > 0
