"""SIGTERM and Ctrl-C: the run saves, prints one line, and can be resumed."""

import json
import os
import pathlib
import signal
import time

import pytest

from jaxkd.runtime.signals import STATUS
from tests.faults.digits_runs import assert_same_bits, ended_after, finish, start, start_two

pytestmark = pytest.mark.faults

# Common grace period of schedulers in seconds, scaled by the load of this machine.
GRACE = 30.0 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
SELDOM = "--config.checkpoint_seconds=3600"  # only the signal makes the run save


def until(process, text):
  """Read the output of a run up to a line with that text."""
  lines = []
  for line in process.stdout:
    lines.append(line)
    if text in line:
      return
  raise AssertionError((lines, process.communicate()))


def saved_steps(workdir, stage):
  return [int(p.name) for p in (workdir / "checkpoints" / stage).glob("*") if p.name.isdigit()]


def stopped(process, number, text=None):
  """Signal a run once it prints `text`; return its last line and the seconds it took to end."""
  with ended_after(process):
    if text:
      until(process, text)
    process.send_signal(number)
    since = time.monotonic()
    output, errors = process.communicate(timeout=600)
  seconds = time.monotonic() - since
  assert (process.returncode, "Traceback" in errors) == (STATUS[number], False), errors
  return output.splitlines()[-1], seconds


def test_signals_in_every_part_of_a_run(tmp_path, record_property):
  record_property("fault", "SIGTERM or Ctrl-C, each saved within 30 s")
  whole, workdir = tmp_path / "whole" / "run", tmp_path / "stopped" / "run"
  long = ["--config.student.epochs=12", SELDOM]
  finish(start(whole, *long))
  tried, slowest = 0, 0.0
  lines = [
    ("teacher: 5 steps", signal.SIGINT, "holding nothing unsaved"),  # its step is compiled
    ("alone: epoch 3", signal.SIGTERM, "in alone, after update "),
    ("alone: epoch 8", signal.SIGINT, "in alone, after update "),
    ("distilled: 36 steps", signal.SIGTERM, "holding nothing unsaved"),
    ("distilled: epoch 5", signal.SIGTERM, "in distilled, after update "),
  ]
  for text, number, where in lines:
    line, seconds = stopped(start(workdir, *long), number, text)
    assert line.startswith(f"stopped by {number.name}") and where in line
    if "update" in where:
      stage, update = line.split()[4].strip(","), int(line.split()[7])
      assert max(saved_steps(workdir, stage)) == update
    tried, slowest = tried + 1, max(slowest, seconds)
    assert slowest < GRACE
  finish(start(workdir, *long))
  assert_same_bits(whole, workdir)
  record_property("tries", tried)
  record_property("outcome", f"stopped within {slowest:.1f} s, ended in the same bits")


def wait_for_signal_handlers(process):
  """Wait until the script has a handler of SIGTERM and its thread that reads signals.

  Both are installed before the slow imports.
  """
  while True:
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    values = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    if int(values["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1 and int(values["Threads"]) > 1:
      return
    assert process.poll() is None
    time.sleep(0.01)


def test_ctrl_c_during_imports(tmp_path, record_property):
  process = start(tmp_path / "run")
  wait_for_signal_handlers(process)
  line, _ = stopped(process, signal.SIGINT)
  assert line.startswith("stopped by SIGINT")
  assert not (tmp_path / "run").exists()
  record_property("fault", "Ctrl-C while the script is being imported")
  record_property("tries", 1)
  record_property("outcome", "stopped in a line, nothing written")


@pytest.mark.parametrize("signalled", [(0,), (1,), (0, 1)])
def test_two_processes_stop_at_one_update(tmp_path, record_property, signalled):
  which = "both" if len(signalled) == 2 else f"process {signalled[0]} alone"
  record_property("fault", f"SIGTERM to {which} of two processes")
  record_property("tries", 1)
  workdir = tmp_path / "run"
  flags = ["--config.student.epochs=60", SELDOM]
  runs = start_two(workdir, *flags, method="alone")
  with ended_after(*runs):
    until(runs[0], "alone: epoch 12")
    for process in signalled:
      runs[process].send_signal(signal.SIGTERM)
    outputs = [run.communicate(timeout=GRACE) for run in runs]
  assert [run.returncode for run in runs] == [75, 75], outputs
  (update,) = saved_steps(workdir, "alone")
  assert f"in alone, after update {update} of 180, saved" in outputs[0][0] and update % 20 == 0
  assert "stopped" not in outputs[1][0]
  rows = (workdir / "metrics.jsonl").read_text().splitlines()
  assert json.loads(rows[-1])["step"] == update - update % 3
  resumed = finish(*start_two(workdir, *flags, method="alone"))
  assert f"180 steps, resumed after {update}\n" in resumed[0]
  record_property("outcome", f"both stopped after update {update} with status 75, and went on")
