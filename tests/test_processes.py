"""Two processes with one device each train as one process with two devices does.

Runs resume with another number of processes, and find each other through the environments of Slurm
and Open MPI.
"""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).parent.parent
pytestmark = pytest.mark.long


def start(
  workdir: pathlib.Path,
  devices: int,
  *flags: str,
  epochs: int = 3,
  method: str = "alone",
  **environment: str,
) -> subprocess.Popen:
  command = [sys.executable, "experiments/train.py", f"--config=configs/digits.py:{method}"]
  command += [f"--workdir={workdir}", f"--config.student.epochs={epochs}"]
  command += [f"--config.evaluate_every={epochs}", f"--config.cpu_devices={devices}", *flags]
  environment |= {"TFDS_DATA_DIR": str(workdir.parent / "tfds"), "PYTHONPATH": str(ROOT)}
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env={**os.environ, **environment},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(*runs: subprocess.Popen) -> str:
  """Wait for runs that must succeed; return the output of the first."""
  printed = [run.communicate(timeout=1800)[0] for run in runs]
  assert not any(run.returncode for run in runs), printed
  return printed[0]


def stop_when_saved(workdir: pathlib.Path, step: int, *runs: subprocess.Popen) -> int:
  """Kill a run once it has saved the given step or a later one; return the last saved step."""
  saved = workdir / "checkpoints" / "alone"
  for _ in range(5400):
    steps = [int(path.name) for path in saved.glob("*") if path.name.isdigit()]
    if max(steps, default=0) >= step or any(run.poll() is not None for run in runs):
      break
    time.sleep(0.1)
  for run in runs:
    run.send_signal(signal.SIGKILL)
  printed = [run.communicate()[0] for run in runs]
  assert max(steps, default=0) >= step and not (workdir / "summary.json").exists(), printed
  return max(int(path.name) for path in saved.glob("*") if path.name.isdigit())


def free_port(first: int, last: int) -> int:
  """Return a random free port, so that concurrent tests do not choose the same one."""
  for port in random.sample(range(first, last + 1), last + 1 - first):
    with socket.socket() as probe:
      try:
        probe.bind(("127.0.0.1", port))
      except OSError:
        continue
      return probe.getsockname()[1]
  raise OSError(f"no free port from {first} to {last}")


def started_by_hand(process: int, port: int) -> tuple[list[str], dict[str, str]]:
  flags = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={process}"]
  return flags, {}


def started_by_slurm(process: int, port: int) -> tuple[list[str], dict[str, str]]:
  """The variables of `srun` with two tasks on one node; jax computes the port from the job id."""
  return ["--distributed"], {
    "SLURM_JOB_ID": str(7 * 2**12 + port - (2**16 - 2**12)),
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": str(process),
    "SLURM_LOCALID": str(process),
  }


def started_by_open_mpi(process: int, port: int) -> tuple[list[str], dict[str, str]]:
  """The variables of `mpirun -n 2` of Open MPI 4; jax computes the port from the job id."""
  job = (port - (2**16 - 2**12)) * 2**12
  return ["--distributed"], {
    "OMPI_MCA_orte_hnp_uri": f"{job}.0;tcp://127.0.0.1:{port}",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": str(process),
    "OMPI_COMM_WORLD_LOCAL_RANK": str(process),
  }


def start_two(workdir: pathlib.Path, how, *flags: str, **options) -> list[subprocess.Popen]:
  """Start a run by two processes of one device each."""
  port = free_port(2**16 - 2**12, 2**16 - 1)
  runs = []
  for process in (0, 1):
    own, environment = how(process, port)
    runs.append(start(workdir, 1, *flags, *own, **options, **environment))
  return runs


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
  """Work directories of a run by one process and of the same run by two."""
  base = tmp_path_factory.mktemp("processes")
  finish(start(base / "one", 2))
  finish(*start_two(base / "two", started_by_hand))
  return base / "one", base / "two"


# Rounding differences grow with the number and size of updates.
SLOWLY = ["--config.student.learning_rate=0.002", "--config.student.warmup_epochs=0"]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
  """A longer run: by one process; started by two and finished by one; and the other way round.

  Returns the folder of the work directories; for the last two runs the number of updates saved when
  they were killed, and the output of the processes that finished them.
  """
  base = tmp_path_factory.mktemp("resumed")
  finish(start(base / "one", 2, *SLOWLY, epochs=30))
  often = [*SLOWLY, "--config.checkpoint_seconds=0"]
  begun = start_two(base / "two_then_one", started_by_slurm, *often, epochs=30)
  made = stop_when_saved(base / "two_then_one", 20, *begun)
  resumptions = {
    "two_then_one": (made, finish(start(base / "two_then_one", 2, *SLOWLY, epochs=30)))
  }
  begun = [start(base / "one_then_two", 2, *often, epochs=30)]
  made = stop_when_saved(base / "one_then_two", 3, *begun)
  runs = start_two(base / "one_then_two", started_by_open_mpi, *SLOWLY, epochs=30)
  return base, {**resumptions, "one_then_two": (made, finish(*runs))}


def weights(workdir, stage="alone"):
  return load_file(workdir / "bundles" / stage / "student" / "weights.safetensors")


def history(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_train_the_same_weights(workdirs):
  one, two = map(weights, workdirs)
  assert one.keys() == two.keys()
  for name, values in one.items():
    np.testing.assert_allclose(two[name], values, rtol=1e-3, atol=1e-4, err_msg=name)


def test_two_processes_write_one_history(workdirs):
  one, two = map(history, workdirs)
  assert [row["step"] for row in one] == [row["step"] for row in two] == [2, 4, 6]
  for a, b in zip(one, two, strict=True):
    assert a["train"]["loss"] == pytest.approx(b["train"]["loss"], rel=1e-3)
  assert json.loads((workdirs[1] / "summary.json").read_text())["devices"]["processes"] == 2


def test_only_the_first_process_writes_files(workdirs):
  """Names of checkpoint and TensorBoard files contain the process that wrote them."""
  one, two = workdirs
  assert list(one.rglob("*process_0*")) and not list(two.rglob("*process_1*"))
  assert [len(list(folder.rglob("events.*"))) for folder in (one, two)] == [1, 1]
  names = [
    sorted(str(path.relative_to(folder)) for path in folder.glob("*")) for folder in (one, two)
  ]
  assert names[0] == names[1]


@pytest.mark.parametrize(("name", "processes"), [("two_then_one", 1), ("one_then_two", 2)])
def test_a_run_resumes_with_another_number_of_processes(resumed, name, processes):
  resumed, resumptions = resumed
  made, printed = resumptions[name]
  assert made < 60 and f"60 steps, resumed after {made}\n" in printed
  whole, parted = weights(resumed / "one"), weights(resumed / name)
  assert whole.keys() == parted.keys()
  for path, values in whole.items():
    np.testing.assert_allclose(parted[path], values, rtol=1e-3, atol=1e-4, err_msg=path)
  one, two = history(resumed / "one"), history(resumed / name)
  assert [row["step"] for row in one] == [row["step"] for row in two] == list(range(2, 61, 2))
  for a, b in zip(one, two, strict=True):
    assert a["train"]["loss"] == pytest.approx(b["train"]["loss"], rel=1e-4)
  summary = json.loads((resumed / name / "summary.json").read_text())
  assert summary["devices"]["processes"] == processes


CACHED = [
  *SLOWLY,
  "--config.teacher.model=mlp",
  "--config.teacher.epochs=1",
  "--config.baseline=False",
  "--config.cached_targets=True",
  "--config.data.views=2",
]


@pytest.mark.parametrize("megabytes", [0, 1024])
def test_two_processes_read_their_cached_targets(tmp_path, megabytes):
  """Each process reads them from its own disk folder (0 MB), or from its devices."""
  held = f"--config.resident_megabytes={megabytes}"
  finish(start(tmp_path / "one", 2, *CACHED, method="kd"))
  finish(*start_two(tmp_path / "two", started_by_hand, *CACHED, held, method="kd"))
  stored = {path.name for path in (tmp_path / "two" / "targets").glob("distilled/*")}
  assert stored == (set() if megabytes else {"process_0", "process_1"})
  one, two = (weights(tmp_path / name, "distilled") for name in ("one", "two"))
  assert one.keys() == two.keys()
  for name, values in one.items():
    np.testing.assert_allclose(two[name], values, rtol=1e-3, atol=1e-4, err_msg=name)


def test_without_a_cluster_one_line_names_the_flags(tmp_path):
  run = start(tmp_path / "run", 1, "--distributed")
  output, _ = run.communicate(timeout=600)
  assert run.returncode != 0
  assert output.startswith(
    "error: no cluster was found here (coordinator_address should be defined"
  )
  assert output.count("\n") == 1 and not (tmp_path / "run").exists()


def test_two_processes_end_early_after_the_epoch_of_one(tmp_path):
  # Updates too small to change a parameter: the first score stays the best.
  flags = ["--config.student.model=mlp", "--config.student.learning_rate=1e-20"]
  flags += ["--config.evaluate_every=1", "--config.student.patience=2"]
  finish(start(tmp_path / "one", 2, *flags, epochs=6))
  printed = finish(*start_two(tmp_path / "two", started_by_hand, *flags, epochs=6))
  assert "alone: ended early after epoch 3 of 6" in printed
  one, two = (
    json.loads((tmp_path / name / "summary.json").read_text())["stages"]["alone"]
    for name in ("one", "two")
  )
  assert (one["epochs"], one["steps"]) == (two["epochs"], two["steps"])
  assert one["epochs"] == 3 and one["accuracy"] == two["accuracy"]
