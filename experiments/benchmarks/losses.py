"""The time and memory of our losses against torchdistill's and plain PyTorch's.

    python experiments/benchmarks/losses.py [--losses kd,at] [--batches 64,256] [--output FILE]

Forward and backward, both libraries in one process with as many threads, calls alternating, so
that whatever else the machine does hits both; the median of many. The peer is PyTorch eager or
torch.compile, whichever is faster. Memory is the rise of a process's resident memory during one
call, with the arguments counted in. Values and gradients are compared first.

`over_limit` is our time over what the machine needs at least: the bytes of arguments and gradients
at the bandwidth of a copy, or the FLOPs that XLA counts at the rate of a matrix product, whichever
is longer. XLA counts the body of a loop once, so that rkd's FLOPs are given by hand.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import loss_cases
import loss_memory
import machine
import numpy as np
from absl import app, flags, logging

_LOSSES = flags.DEFINE_list("losses", list(loss_cases.CASES), "Which losses.")
_BATCHES = flags.DEFINE_list("batches", ["64", "256"], "Batch sizes.")
_SECONDS = flags.DEFINE_float("seconds", 3.0, "Time for each loss and batch size.")
_COMPILE = flags.DEFINE_boolean("torch_compile", True, "Also torch.compile; needs g++.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")

_CALLS = (5, 50)  # at least and at most
_MOST_MEMORY_BATCH = 1024


def main(argv: Sequence[str]) -> None:
  """Prints a line per loss and batch size, and a summary."""
  del argv
  logging.set_verbosity(logging.WARNING)
  found = measure(
    _LOSSES.value, [int(b) for b in _BATCHES.value], _SECONDS.value, torch_compile=_COMPILE.value
  )
  print(json.dumps({key: value for key, value in found.items() if key != "losses"}, indent=1))
  if _OUTPUT.value:
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(found, indent=1) + "\n")


def measure(
  names: Sequence[str] = tuple(loss_cases.CASES),
  batches: Sequence[int] = (64, 256),
  seconds: float = 3.0,
  *,
  torch_compile: bool = True,
) -> dict[str, Any]:
  """Everything, as JSON has it.

  Args:
    names: of `loss_cases.CASES`.
    batches: their sizes.
    seconds: for each loss and size, beside compilation.
    torch_compile: also try torch.compile.

  Returns:
    {"losses": {"kd, batch 64": {"ratio", "memory_ratio", "over_limit", ...}}, "limits": ...,
    "summary": ..., "rkd_batch_1024_bytes": ...}.
  """
  # Worker processes that compile would still run while others are timed.
  os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
  import torch

  torch.set_num_threads(machine.cores())
  # In giga of bytes or of FLOPs per second.
  limits = {"copy": copy_bandwidth(), "matmul": max(machine.matmul_peak().values())}
  rows = {}
  for name in names:
    for batch in batches:
      row = compare(name, batch, seconds, limits, torch_compile)
      rows[f"{name}, batch {batch}"] = row
      print(_line(name, row), flush=True)
  ratios = [row["ratio"] for row in rows.values()]
  found = {
    "losses": rows,
    "limits": limits,
    "summary": {
      "geometric_mean_ratio": round(math.exp(statistics.fmean(map(math.log, ratios))), 2),
      "slowest_ratio": min(ratios),
      "smallest_memory_ratio": min(row["memory_ratio"] for row in rows.values()),
      "largest_over_limit": max(row["over_limit"] for row in rows.values()),
    },
    "versions": machine.versions(),
  }
  if "rkd" in names:
    found["rkd_batch_1024_bytes"] = loss_memory.rise("rkd", _MOST_MEMORY_BATCH, "ours")
  return found


def compare(
  name: str, batch: int, seconds: float, limits: Mapping[str, float], torch_compile: bool
) -> dict[str, Any]:
  """One loss at one batch size."""
  import loss_peers
  import torch

  case = loss_cases.CASES[name]
  students, teachers, labels = loss_cases.arrays_of(case, batch)
  arguments = jax.device_put((dict(students), dict(teachers), labels))
  compiled = jax.jit(loss_cases.value_and_gradient(case)).lower(*arguments).compile()
  s = loss_peers.tensors(students, learning=True)
  t = loss_peers.tensors(teachers, learning=False)
  numbers = torch.from_numpy(labels).long()
  runs: dict[str, Callable[[], Any]] = {"ours": lambda: jax.block_until_ready(compiled(*arguments))}
  failure = None
  for side in ("eager", "compiled") if torch_compile else ("eager",):
    theirs = loss_peers.value_and_gradient(name, compiled=side == "compiled")
    try:
      _check_agreement(name, runs["ours"](), theirs(s, t, numbers), list(students))
    except AssertionError:
      raise
    except Exception as error:  # torch.compile fails in many ways; the reason is kept
      if side == "eager":
        raise
      failure = f"{type(error).__name__}: {str(error).splitlines()[0]}"
      continue
    runs[side] = lambda theirs=theirs: theirs(s, t, numbers)
  times = _alternate(runs, seconds)
  peer = min((side for side in runs if side != "ours"), key=lambda side: times[side])
  inputs = sum(x.nbytes for x in [*students.values(), *teachers.values()])
  gradients = sum(x.nbytes for x in students.values())
  flops = _flops(name, batch, compiled)
  limit = max((inputs + gradients) / limits["copy"], flops / limits["matmul"]) / 1e9
  memory = {side: inputs + loss_memory.rise(name, batch, side) for side in ("ours", peer)}
  row = {
    "ratio": round(times[peer] / times["ours"], 3),
    "memory_ratio": round(memory[peer] / memory["ours"], 3),
    "over_limit": round(times["ours"] / limit, 2),
    "shapes": {key: list(x.shape[1:]) for key, x in students.items()},
    "batch": batch,
    "ours_ms": round(1000 * times["ours"], 3),
    "peer_ms": round(1000 * times[peer], 3),
    "peer": f"{case.peer}, {'torch.compile' if peer == 'compiled' else peer}",
    "limit_ms": round(1000 * limit, 3),
    "ours_bytes": memory["ours"],
    "peer_bytes": memory[peer],
  }
  for side in ("eager", "compiled"):
    if side in times:
      row[f"{side}_ms"] = round(1000 * times[side], 3)
  return row if failure is None else row | {"torch_compile_failed": failure}


def copy_bandwidth() -> float:
  """Gigabytes read and written per second by the fastest of large copies, numpy's or PyTorch's."""
  source, target = np.ones(1 << 26, np.float32), np.ones(1 << 26, np.float32)
  import torch

  ours, theirs = torch.from_numpy(source), torch.from_numpy(target)
  best = min(_best(lambda: np.copyto(target, source)), _best(lambda: theirs.copy_(ours)))
  return round(2 * source.nbytes / best / 1e9, 2)


def _flops(name: str, batch: int, compiled: jax.stages.Compiled) -> float:
  counted = (compiled.cost_analysis() or {}).get("flops", 0.0)
  # Half of the triples, 22 operations for value and slopes; see jaxkd/losses/triangles.py.
  return 11.0 * batch**3 if name == "rkd" else counted


def _alternate(runs: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
  """Median seconds of each. Every timed call follows one of the same that is not timed.

  The other library's threads still spin for a while, and have filled the caches.
  """
  times: dict[str, list[float]] = {side: [] for side in runs}
  end = time.perf_counter() + seconds
  least, most = _CALLS
  while len(times["ours"]) < least or (time.perf_counter() < end and len(times["ours"]) < most):
    # Who goes first alternates.
    for side in list(runs) if len(times["ours"]) % 2 else reversed(list(runs)):
      runs[side]()
      start = time.perf_counter()
      runs[side]()
      times[side].append(time.perf_counter() - start)
  return {side: statistics.median(each) for side, each in times.items()}


def _best(run: Callable[[], Any], calls: int = 10) -> float:
  times = []
  for _ in range(calls):
    start = time.perf_counter()
    run()
    times.append(time.perf_counter() - start)
  return min(times)


def _check_agreement(name: str, ours: Any, theirs: Sequence[Any], order: Sequence[str]) -> None:
  """The timings compare the same work only if both compute the same thing."""
  import loss_peers

  value, gradients = ours
  np.testing.assert_allclose(value, theirs[0].numpy(), rtol=1e-4, err_msg=name)
  for key, gradient in zip(order, theirs[1:], strict=True):
    gap = np.linalg.norm(np.asarray(gradients[key]) - loss_peers.array(gradient))
    size = np.linalg.norm(loss_peers.array(gradient))
    assert gap <= 1e-2 * size, f"{name}: gradients by {key} differ by {gap / size:.1e}"


def _line(name: str, row: Mapping[str, Any]) -> str:
  return (
    f"{name:12s} {row['batch']:4d}  ours {row['ours_ms']:9.3f} ms  peer {row['peer_ms']:9.3f} ms  "
    f"ratio {row['ratio']:7.2f}  memory {row['memory_ratio']:6.2f}  over limit "
    f"{row['over_limit']:6.2f}  {row['peer']}"
  )


if __name__ == "__main__":
  app.run(main)
