"""The time and memory of our losses against torchdistill's and plain PyTorch's; needs both.

Forward and backward, both libraries in one process with equally many threads, calls alternating, so
that other load on the machine affects both; the median of many. The peer is PyTorch eager or
torch.compile, whichever is faster. Memory is the rise of a process's resident memory during one
call, arguments included. Values and gradients are compared first.

`over_limit` is our time over the least time of the machine: the bytes of arguments and gradients at
the bandwidth of a copy, or the FLOPs that XLA counts at the rate of a matrix product, whichever is
longer. XLA counts the body of a loop once, so rkd's FLOPs are given by hand.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch

from benchmarks import loss_cases, loss_memory, loss_peers, machine
from benchmarks.alternating import alternate, compared, milliseconds

_MOST_ROUNDS = 50
_MOST_MEMORY_BATCH = 1024


def measure(
  names: Sequence[str] = tuple(loss_cases.CASES),
  batches: Sequence[int] = (64, 256),
  seconds: float = 3.0,
) -> dict[str, Any]:
  """Return all measurements, as in the JSON file.

  Args:
    names: keys of `loss_cases.CASES`.
    batches: batch sizes.
    seconds: time for each loss and size, beside compilation. torch.compile needs g++.

  Returns:
    {"losses": {"kd, batch 64": {"ratio", "memory_ratio", "over_limit", ...}}, "limits": ...,
    "summary": ..., "rkd_batch_1024_bytes": ...}.
  """
  # Worker processes of the compiler would still run during the timing.
  os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
  torch.set_num_threads(machine.cores())
  # In gigabytes or GFLOP per second.
  limits = {"copy": copy_bandwidth(), "matmul": max(machine.matmul_peak().values())}
  rows = {}
  for name in names:
    for batch in batches:
      row = compare(name, batch, seconds, limits)
      rows[f"{name}, batch {batch}"] = row
      print(_line(name, row), flush=True)
  ratios = [row["ratio"] for row in rows.values()]
  found = {
    "losses": rows,
    "limits": limits,
    "summary": {
      "geometric_mean_ratio": _geometric_mean(ratios),
      "geometric_mean_over_eager": _geometric_mean(
        [row["eager_ms"] / row["ours_ms"] for row in rows.values()]
      ),
      "slowest_ratio": min(ratios),
      "smallest_memory_ratio": min(row["memory_ratio"] for row in rows.values()),
      "largest_over_limit": max(row["over_limit"] for row in rows.values()),
    },
  }
  if "rkd" in names:
    found["rkd_batch_1024_bytes"] = loss_memory.rise("rkd", _MOST_MEMORY_BATCH, "ours")
  return found


def compare(name: str, batch: int, seconds: float, limits: Mapping[str, float]) -> dict[str, Any]:
  """Measure one loss at one batch size."""
  case = loss_cases.CASES[name]
  students, teachers, labels = loss_cases.arrays_of(case, batch)
  arguments = jax.device_put((dict(students), dict(teachers), labels))
  compiled = jax.jit(loss_cases.value_and_gradient(case)).lower(*arguments).compile()
  s = loss_peers.tensors(students, learning=True)
  t = loss_peers.tensors(teachers, learning=False)
  numbers = torch.from_numpy(labels).long()
  runs: dict[str, Callable[[], Any]] = {"ours": lambda: jax.block_until_ready(compiled(*arguments))}
  failure = None
  torch.compiler.reset()  # compiles one function for a few cases only, and then runs it as it is
  for side in ("eager", "compiled"):
    theirs = loss_peers.value_and_gradient(name, compiled=side == "compiled")
    try:
      _check_agreement(name, runs["ours"](), theirs(s, t, numbers), list(students))
    except AssertionError:
      raise
    except Exception as error:  # torch.compile fails in many ways; the reason is stored
      if side == "eager":
        raise
      failure = f"{type(error).__name__}: {str(error).splitlines()[0]}"
      continue
    runs[side] = lambda theirs=theirs: theirs(s, t, numbers)
  # Threads of the other library still spin for a while, and have filled the caches.
  rounds = alternate(runs, rounds=_MOST_ROUNDS, seconds=seconds, primers=1)
  times = {side: statistics.median(each) for side, each in rounds.items()}
  peer = min((side for side in runs if side != "ours"), key=lambda side: times[side])
  inputs = sum(x.nbytes for x in [*students.values(), *teachers.values()])
  gradients = sum(x.nbytes for x in students.values())
  flops = _flops(name, batch, compiled)
  limit = max((inputs + gradients) / limits["copy"], flops / limits["matmul"]) / 1e9
  memory = {side: inputs + loss_memory.rise(name, batch, side) for side in ("ours", peer)}
  row = {
    **compared(rounds, peer, "ours"),
    "memory_ratio": round(memory[peer] / memory["ours"], 3),
    "over_limit": round(times["ours"] / limit, 2),
    "shapes": {key: list(x.shape[1:]) for key, x in students.items()},
    "batch": batch,
    "ours_ms": milliseconds(rounds["ours"]),
    "peer_ms": milliseconds(rounds[peer]),
    "peer": f"{case.peer}, {'torch.compile' if peer == 'compiled' else peer}",
    "limit_ms": round(1000 * limit, 3),
    "ours_bytes": memory["ours"],
    "peer_bytes": memory[peer],
  }
  for side in ("eager", "compiled"):
    if side in times:
      row[f"{side}_ms"] = milliseconds(rounds[side])
  return row if failure is None else row | {"torch_compile_failed": failure}


def copy_bandwidth() -> float:
  """Return the GB/s read and written by the fastest large copy, numpy's or PyTorch's."""
  source, target = np.ones(1 << 26, np.float32), np.ones(1 << 26, np.float32)
  ours, theirs = torch.from_numpy(source), torch.from_numpy(target)
  best = min(_best(lambda: np.copyto(target, source)), _best(lambda: theirs.copy_(ours)))
  return round(2 * source.nbytes / best / 1e9, 2)


def _flops(name: str, batch: int, compiled: jax.stages.Compiled) -> float:
  counted = (compiled.cost_analysis() or {}).get("flops", 0.0)
  # Half of the triples, 22 operations for value and slopes; see jaxkd/losses/_rkd_angles.py.
  return 11.0 * batch**3 if name == "rkd" else counted


def _geometric_mean(ratios: Sequence[float]) -> float:
  return round(math.exp(statistics.fmean(map(math.log, ratios))), 2)


def _best(run: Callable[[], Any], calls: int = 10) -> float:
  times = []
  for _ in range(calls):
    start = time.perf_counter()
    run()
    times.append(time.perf_counter() - start)
  return min(times)


def _check_agreement(name: str, ours: Any, theirs: Sequence[Any], order: Sequence[str]) -> None:
  """Raise an AssertionError unless both compute the same value and gradients."""
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
