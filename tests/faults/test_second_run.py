"""A second run in the same work directory fails at once and leaves the first undisturbed."""

import signal
import time

import pytest

from tests.faults.digits_runs import assert_same_bits, ended_after, finish, start, start_two

pytestmark = pytest.mark.faults


def refused(*runs):
  """Check that each run ends with the one error line; return the seconds it took."""
  since = time.monotonic()
  outputs = [run.communicate(timeout=300) for run in runs]
  for run, (out, errors) in zip(runs, outputs, strict=True):
    assert run.returncode == 1 and "steps" not in out
    (line,) = errors.splitlines()
    assert line.startswith("error: workdir ")
  assert "is in use by another run; wait for its end or choose another" in outputs[0][1]
  return time.monotonic() - since


def test_two_runs_on_one_workdir(tmp_path, record_property):
  record_property("fault", "a second run on the same work directory")
  whole, workdir = tmp_path / "whole", tmp_path / "run"
  finish(start(whole))
  first = start(workdir)
  with ended_after(first):
    while not (workdir / "config.json").exists():
      assert first.poll() is None
      time.sleep(0.05)
    # Stopped, because the whole run takes hardly longer than the refusal of a second one.
    first.send_signal(signal.SIGSTOP)
    refused(start(workdir))
    refused(*start_two(workdir))
    assert first.poll() is None
    first.send_signal(signal.SIGCONT)
    finish(first)
  assert_same_bits(whole, workdir)
  (output,) = finish(start(workdir))
  assert "is complete" in output
  record_property("tries", 2)
  record_property("outcome", "refused in a line by one and by two processes; the first undisturbed")
