"""A run killed at random moments resumes, and ends in the bits of an undisturbed run."""

import collections
import random
import signal
import time

import pytest

from tests.faults.digits_runs import assert_same_bits, ended_after, finish, start

pytestmark = pytest.mark.faults

KILLS = 20
# Kills per run, before it is left to end.
PER_RUN = 5


def where(workdir):
  """Return what a run was doing when it was killed."""
  checkpoints = workdir / "checkpoints"
  if list(checkpoints.glob("*/*tmp*")):
    return "during a save"
  if not checkpoints.exists():
    return "before the first stage"
  stages = list(checkpoints.iterdir())
  newest = max(stages, key=lambda stage: stage.stat().st_ctime_ns)
  return "within a stage" if list(newest.iterdir()) else "before a stage's first update"


def seconds_of(workdir):
  """Make a whole run; return its duration in seconds."""
  began = time.monotonic()
  finish(start(workdir))
  return time.monotonic() - began


def test_sigkill_at_random_moments(tmp_path, record_property):
  record_property("fault", "SIGKILL at a random moment")
  whole, again = tmp_path / "whole" / "run", tmp_path / "whole" / "again"
  cold = seconds_of(whole)
  warm = seconds_of(again)  # data and compiled programs are there
  assert_same_bits(whole, again)

  moments = random.Random(8)
  places, resumed, kills = collections.Counter(), 0, 0
  while kills < KILLS:
    # The first run has an empty home folder, so it is also killed while preparing and compiling.
    home, seconds = (whole.parent / "home", warm / 2) if resumed else (tmp_path / "home", cold)
    workdir = tmp_path / f"killed{resumed}"
    for _ in range(min(PER_RUN, KILLS - kills)):
      process = start(workdir, home=home)
      with ended_after(process):
        if resumed:
          process.stdout.readline()  # wait for its first stage: the first run covers imports
        time.sleep(moments.uniform(0, seconds))
        if process.poll() is not None:
          break  # it ended before the moment
        process.send_signal(signal.SIGKILL)
        process.communicate()
      assert process.returncode == -signal.SIGKILL
      places[where(workdir)] += 1
      kills += 1
    finish(start(workdir, home=home))
    assert_same_bits(whole, workdir)
    resumed += 1
  record_property("tries", kills)
  counts = ", ".join(f"{count} {place}" for place, count in sorted(places.items()))
  record_property("outcome", f"{resumed} runs of {kills} kills ended in the same bits ({counts})")
