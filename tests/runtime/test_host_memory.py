"""Freed memory stays with the process, unless the environment configures malloc."""

import os
import platform
import subprocess
import sys

import pytest

# Page faults when another thread allocates, writes and frees 256 MB for the second time.
FAULTS = """
import ctypes, resource, threading
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages: one of them replaces 512 faults
from jaxkd.runtime.memory import tune_malloc
changed = tune_malloc()

def use():
  for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    bytearray(b"x") * (256 * 2**20)
  print(changed, resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)

thread = threading.Thread(target=use)
thread.start()
thread.join()
"""


def faults(**environment):
  kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
  done = subprocess.run(
    [sys.executable, "-c", FAULTS],
    env=kept | environment,
    text=True,
    capture_output=True,
    check=True,
  )
  changed, count = done.stdout.split()
  return changed == "True", int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_reused_large_blocks_cause_no_page_faults():
  changed, count = faults()
  assert changed and count < 1000
  changed, count = faults(MALLOC_TOP_PAD_="131072")
  assert not changed and count > 10_000
