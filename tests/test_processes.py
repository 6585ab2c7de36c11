"""Two processes with one device each train as one process with two devices does."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).parent.parent
pytestmark = pytest.mark.long


def start(workdir: pathlib.Path, devices: int, *flags: str) -> subprocess.Popen:
  command = [sys.executable, "experiments/train.py", "--config=configs/digits.py:alone"]
  command += [f"--workdir={workdir}", "--config.student.epochs=3", "--config.evaluate_every=3"]
  command += [f"--config.cpu_devices={devices}", *flags]
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env={**os.environ, "TFDS_DATA_DIR": str(workdir.parent / "tfds"), "PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(run: subprocess.Popen) -> None:
  output, _ = run.communicate(timeout=240)
  assert run.returncode == 0, output


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
  """The work directories of a run by one process and of the same run by two."""
  base = tmp_path_factory.mktemp("processes")
  finish(start(base / "one", 2))
  cluster = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
  first, second = (
    start(base / "two", 1, *cluster, f"--process_id={process}") for process in (0, 1)
  )
  finish(first)
  finish(second)
  return base / "one", base / "two"


def test_two_processes_train_the_same_weights(workdirs):
  one, two = (
    load_file(workdir / "bundles" / "alone" / "student" / "weights.safetensors")
    for workdir in workdirs
  )
  assert one.keys() == two.keys()
  for name, weights in one.items():
    np.testing.assert_allclose(two[name], weights, rtol=1e-3, atol=1e-4, err_msg=name)


def test_two_processes_write_one_history(workdirs):
  one, two = (
    [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for workdir in workdirs
  )
  assert [row["step"] for row in one] == [row["step"] for row in two] == [2, 4, 6]
  for a, b in zip(one, two, strict=True):
    assert a["train"]["loss"] == pytest.approx(b["train"]["loss"], rel=1e-3)
  assert json.loads((workdirs[1] / "summary.json").read_text())["devices"]["processes"] == 2
