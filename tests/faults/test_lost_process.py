"""When one of two processes is killed, the other prints one line and ends; both can resume."""

import signal
import time

import pytest

from jaxkd.runtime.processes import LOST_PROCESS
from tests.faults.digits_runs import assert_same_bits, ended_after, finish, start_two

pytestmark = pytest.mark.faults

FLAGS = ["--config.student.epochs=20"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("pairs") / "whole"
  finish(*start_two(workdir, *FLAGS, method="alone"))
  return workdir


@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_processes_is_killed(whole, tmp_path, record_property, victim):
  record_property("fault", f"SIGKILL of process {victim} of two")
  record_property("tries", 1)
  workdir = tmp_path / "run"
  home = whole.parent / "home"
  runs = start_two(workdir, *FLAGS, method="alone", home=home)
  with ended_after(*runs):
    saved = workdir / "checkpoints" / "alone"
    deadline = time.monotonic() + 200
    while not any(path.name.isdigit() for path in saved.glob("*")):
      assert all(run.poll() is None for run in runs) and time.monotonic() < deadline
      time.sleep(0.02)
    runs[victim].send_signal(signal.SIGKILL)
    since = time.monotonic()
    _, errors = runs[1 - victim].communicate(timeout=300)
  seconds = time.monotonic() - since
  assert runs[1 - victim].returncode == 1, errors
  # Jax or orbax may print before, if they notice first.
  assert errors.splitlines()[-1] == LOST_PROCESS
  finish(*start_two(workdir, *FLAGS, method="alone", home=home))
  assert_same_bits(whole, workdir)
  outcome = f"the other ended in a line within {seconds:.0f} s; resumed to the same bits"
  record_property("outcome", outcome)
