"""Measure the memory of one loss, forward and backward, in a process of its own.

    python experiments/studies/bench/benchmarks/loss_memory.py at 64 ours

Prints the peak of the process's resident memory during a call minus its value before, as the kernel
counts it: the same measure for every library. A first call has left compiled code and thread pools,
and has freed its arrays.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

SIDES = ("ours", "eager", "compiled")


def rise(name: str, batch: int, side: str) -> int:
  """Return the bytes that one call needs beside its arguments, measured in a child process.

  Args:
    name: one of `loss_cases.CASES`.
    batch: number of examples.
    side: "ours", or PyTorch's "eager" or "compiled".
  """
  command = [sys.executable, __file__, name, str(batch), side]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
  return json.loads(done.stdout.splitlines()[-1])["bytes"]


def main(name: str, batch: int, side: str) -> None:
  """Print one JSON line."""
  call = _call(name, batch, side)
  for _ in range(2):
    call()
  rises = []
  # The kernel adds up the pages of each thread late, so that one rise may lack a few of them.
  for _ in range(10):
    _settle()
    # Linux: reset the peak.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    call()
    rises.append(_resident("VmHWM") - before)
  # Memory still held before a call is missing from its rise, so the largest rise is right.
  print(json.dumps({"bytes": max(rises)}))


def _settle(quiet: float = 0.3, limit: float = 20.0) -> None:
  """Wait until no memory is returned any more: threads free the last arrays after a call."""
  ends, lowest, since = time.monotonic() + limit, math.inf, time.monotonic()
  while time.monotonic() < ends and time.monotonic() - since < quiet:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    if (resident := _resident("VmRSS")) < lowest:
      lowest, since = resident, time.monotonic()
    time.sleep(0.02)


def _call(name: str, batch: int, side: str) -> Callable[[], None]:
  """Return a function that computes value and gradient, and frees them."""
  from benchmarks import loss_cases

  case = loss_cases.CASES[name]
  students, teachers, labels = loss_cases.arrays_of(case, batch)
  if side == "ours":
    import jax

    arguments = jax.device_put((dict(students), dict(teachers), labels))
    run = jax.jit(loss_cases.value_and_gradient(case))

    def ours() -> None:
      jax.block_until_ready(run(*arguments))

    return ours
  import torch

  from benchmarks import loss_peers

  s, t = (
    loss_peers.tensors(students, learning=True),
    loss_peers.tensors(teachers, learning=False),
  )
  theirs = loss_peers.value_and_gradient(name, compiled=side == "compiled")
  numbers = torch.from_numpy(labels).long()

  def peers() -> None:
    theirs(s, t, numbers)

  return peers


def _resident(field: str) -> int:
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith(field + ":"):
      return 1024 * int(line.split()[1])
  raise RuntimeError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
  # The folder of the package, as for the scripts in experiments/studies/bench.
  sys.path[0] = str(pathlib.Path(__file__).parents[1])
  main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
