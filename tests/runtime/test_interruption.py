"""A signalled process exits at once if nothing is unsaved, with the status of the signal."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

from jaxkd.runtime.signals import STATUS

ROOT = pathlib.Path(__file__).parents[2]
# An idle process blocks in C, where Python handlers cannot run: on a mutex that its thread holds
# already. A sleep would not do, as a signal ends it.
SCRIPT = """
import ctypes, sys, time
from jaxkd.runtime.signals import Interruption, install_signal_handlers
stop = Interruption()
install_signal_handlers(stop, lambda line: print(line, flush=True))
print("ready", flush=True)
if sys.argv[1] == "idle":
  library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
  library.pthread_mutex_init(mutex, None)
  while True:
    library.pthread_mutex_lock(mutex)
stop.begin()
print("unsaved", flush=True)
while not stop.requested:
  time.sleep(0.01)
print("requested by", stop.requested_by, flush=True)
while True:
  time.sleep(60)
"""


@pytest.fixture
def start():
  """start("idle" or "unsaved"): a process with signal handlers."""
  started = []

  def one(kind):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, kind], cwd=ROOT, **pipes)
    started.append(process)
    assert process.stdout.readline() == "ready\n"
    if kind == "unsaved":
      assert process.stdout.readline() == "unsaved\n"
    return process

  yield one
  for process in started:
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", STATUS)
def test_idle_run_exits_immediately_on_signal(start, number):
  process = start("idle")
  process.send_signal(number)
  printed, _ = process.communicate(timeout=900)
  line = f"stopped by {number.name}, holding nothing unsaved; the same command goes on\n"
  assert (process.returncode, printed) == (STATUS[number], line)


@pytest.mark.parametrize("number", STATUS)
def test_run_with_unsaved_work_exits_only_at_the_second_signal(start, number):
  process = start("unsaved")
  process.send_signal(signal.SIGTERM)
  assert process.stdout.readline() == "requested by SIGTERM\n"
  time.sleep(0.1)
  assert process.poll() is None
  process.send_signal(number)
  printed, _ = process.communicate(timeout=900)
  line = f"ended by a second {number.name}; the same command goes on from the last checkpoint\n"
  assert (process.returncode, printed) == (128 + number, line)
