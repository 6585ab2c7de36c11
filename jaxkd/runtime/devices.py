"""The devices of a run: how many the CPU has for XLA, and which ones share a step's batch."""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax

from jaxkd.errors import ConfigError

# Multiply-adds of a step's forward pass from which two CPU devices are faster than one, on two
# kinds of processors. Devices of a CPU synchronise wherever statistics or gradients are pooled:
# about fifteen times in a ResNet-8, which took 5 to 6 ms on two cores, independent of the work.
_WORTH_SHARING = 2e9


def set_cpu_devices(devices: int, batch_size: int) -> None:
  """Make the CPU appear to XLA as several devices. Call it before jax is first used.

  XLA runs a convolution with 32 or more channels on one core only; with one device per core, a
  mapped step uses all cores.

  Args:
    devices: number of devices; 0 takes the largest number that divides `batch_size` and is at most
      the number of cores.
    batch_size: examples of one step.
  """
  if not devices:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = next(n for n in range(max(1, cores or 1), 0, -1) if batch_size % n == 0)
  jax.config.update("jax_num_cpu_devices", devices)


def local_devices(count: int, batch_size: int, accumulate: int = 1) -> list[jax.Device]:
  """Return the devices of this process that share each step's batch.

  Args:
    count: number of devices; 0 takes all.
    batch_size: examples of one step over all processes.
    accumulate: parts into which each device's share is cut.

  Raises:
    ConfigError: if there are fewer devices, or the batch cannot be divided evenly.
  """
  devices = jax.local_devices()
  if count > len(devices):
    raise ConfigError(f"devices={count}: this machine has {len(devices)} ({devices[0].platform})")
  chosen = devices[: count or len(devices)]
  parts = len(chosen) * jax.process_count() * accumulate
  if batch_size % parts:
    over = f"{len(chosen)} devices x {jax.process_count()} processes x {accumulate} parts"
    raise ConfigError(f"batch_size={batch_size}: not divisible by {parts} ({over})")
  return chosen


def choose_devices(
  devices: Sequence[jax.Device], multiply_adds: Sequence[int | None], batch_size: int
) -> list[jax.Device]:
  """Return all devices, or one CPU device if steps are too small to amortise synchronisation.

  Args:
    devices: candidates, all of this process.
    multiply_adds: of an example's forward pass, one number for each kind of step; None is unknown
      and counts as large.
    batch_size: examples of one step.
  """
  least = _WORTH_SHARING / batch_size
  small = all(work is not None and work < least for work in multiply_adds)
  if small and devices[0].platform == "cpu" and jax.process_count() == 1:
    return list(devices[:1])
  return list(devices)
