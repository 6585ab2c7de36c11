"""Our training step, mapped as by default, against a hand-written PyTorch step, on the CPU."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import flops, pairs
from benchmarks.alternating import alternate, compared, milliseconds
from benchmarks.machine import cores, matmul_peak
from benchmarks.pairs import PAIRS, Pair, Stepper
from benchmarks.torch_twin import TorchStep, twin
from jaxkd import models


def measure(
  names: Sequence[str] = tuple(PAIRS), *, rounds: int = 100, seconds: float = 20.0
) -> dict[str, Any]:
  """Return pair -> our step's time over PyTorch's, and both in images/s and GFLOP/s.

  "cached" is the ratio of our step with cached targets, which does not run the teacher, over
  PyTorch's, which does.

  PyTorch uses a thread per core and whichever of its two layouts is faster; ours runs over as many
  XLA devices as an experiment chooses. They take turns in blocks of steps. "alone_ms" is the time
  of each without turns; if it is much less than the other figure, the two thread pools disturb each
  other.

  GFLOP/s count the FLOPs of `flops.minimum`; "matmul_peak" is measured in the same process.
  """
  torch.set_num_threads(cores())
  found: dict[str, Any] = {name: _compare(PAIRS[name], rounds, seconds) for name in names}
  peak = matmul_peak()
  for row in found.values():
    best = max(peak.values())
    row["share_of_peak"] = {who: round(row["gflops"][who] / best, 3) for who in row["gflops"]}
    row["matmul_peak_gflops"] = peak
  return found


def _compare(pair: Pair, rounds: int, seconds: float) -> dict[str, Any]:
  batch = pairs.random_batch(pair.image_shape, pair.batch_size)
  ours = Stepper(pairs.distilling(pair), batch, untrained=("teacher",))
  people = ours.participants
  cached = Stepper(pairs.distilling(pair), batch, untrained=("teacher",), cached=True)
  images = torch.from_numpy(np.ascontiguousarray(batch.inputs.transpose(0, 3, 1, 2)))
  labels = torch.from_numpy(batch.labels.astype(np.int64))
  theirs = {layout: torch_step(pair, people, layout) for layout in (False, True)}
  steppers = {
    layout: (lambda layout=layout: theirs[layout].step(images, labels)) for layout in theirs
  }
  ours.step()
  cached.step()
  for run in steppers.values():
    run()
  # Losses of the first update from the same weights: equal if networks and objective are.
  for step in theirs.values():
    np.testing.assert_allclose(ours.loss, step.loss, rtol=1e-3)
  np.testing.assert_allclose(cached.loss, ours.loss, rtol=1e-5)

  block = _block(ours.step)
  trial = alternate(
    {str(layout): run for layout, run in steppers.items()}, rounds=5, block=block, seconds=seconds
  )
  last = statistics.median(trial["True"]) < statistics.median(trial["False"])
  contestants = {"ours": ours.step, "cached": cached.step, "pytorch": steppers[last]}
  times = alternate(contestants, rounds=rounds, seconds=seconds, block=block)
  alone = {
    name: alternate({name: run}, rounds=10, block=block, seconds=seconds / 8)[name]
    for name, run in contestants.items()
  }
  work = flops.minimum(pair) * pair.batch_size
  medians = {name: statistics.median(values) for name, values in times.items()}
  return {
    **compared(times, "ours", "pytorch"),
    "cached": compared(times, "cached", "pytorch")["ratio"],
    "milliseconds": {name: milliseconds(values) for name, values in times.items()},
    "alone_ms": {name: milliseconds(values) for name, values in alone.items()},
    "images_per_second": {name: round(pair.batch_size / s) for name, s in medians.items()},
    "gflops": {name: round(work / medians[name] / 1e9, 1) for name in ("ours", "pytorch")},
    "pytorch_layout": "channels_last" if last else "contiguous",
    "devices": len(ours.devices),
    "threads": torch.get_num_threads(),
    "block": block,
  }


def torch_step(pair: Pair, people: Any, channels_last: bool) -> TorchStep:
  """Return PyTorch's step from the same weights."""
  channels = pair.image_shape[-1]
  teacher, student = (
    twin(models.create(name, num_classes=pairs.CLASSES), people[role], channels)
    for name, role in ((pair.teacher, "teacher"), (pair.student, "student"))
  )
  return TorchStep(
    teacher,
    student,
    channels_last=channels_last,
    temperature=pairs.TEMPERATURE,
    kd_weight=pairs.KD_WEIGHT,
    label_weight=pairs.LABEL_WEIGHT,
    learning_rate=pairs.LEARNING_RATE,
    momentum=pairs.MOMENTUM,
  )


def _block(step: Callable[[], None], target: float = 0.1) -> int:
  """Return the number of steps that take about `target` seconds, from 1 to 8."""
  step()
  start = time.perf_counter()
  for number in itertools.count(1):
    step()
    if number == 8 or time.perf_counter() - start > target:
      return number
  raise AssertionError("count ends")
