"""A process that C++ aborts because another one is lost prints one line and exits."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from jaxkd.runtime.processes import LOST_PROCESS, is_lost_process_error

ROOT = pathlib.Path(__file__).parents[2]
# As in jax: the abort comes from a C++ thread while Python is busy.
SCRIPT = """
import ctypes, os, threading
from jaxkd.runtime import processes

def end():
  os.write(2, processes.LOST_PROCESS.encode())
  os._exit(1)

processes.on_abort(end)
threading.Thread(target=ctypes.CDLL(None).abort).start()
while True:
  pass
"""


def test_an_abort_prints_a_line_and_exits_with_status_1():
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True
  )
  assert (done.returncode, done.stdout, done.stderr) == (1, "", LOST_PROCESS)


@pytest.mark.parametrize(
  ("text", "lost"),
  [
    ("UNKNOWN: Gloo all-reduce failed: Read error [127.0.0.1]:1: Connection reset by peer", True),
    ("UNAVAILABLE: Failed to send RPC to coordination service.", True),
    ("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.", False),
  ],
)
def test_errors_of_lost_collectives_are_recognised(text, lost):
  error = jax.errors.JaxRuntimeError(text)
  assert is_lost_process_error(error) == lost
  wrapped = OSError("not saved")
  wrapped.__cause__ = error
  assert is_lost_process_error(wrapped) == lost
  assert not is_lost_process_error(OSError(text))
