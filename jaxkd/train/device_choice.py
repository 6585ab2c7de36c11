"""How many devices share a step."""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax

from jaxkd.errors import ConfigError

# Multiply-adds of a step's forward pass. Devices of a CPU wait for each other wherever statistics
# or gradients are pooled, some fifteen times in a ResNet-8, which took 5 to 6 ms on two cores,
# whatever the work. On two kinds of processors, two devices were the faster from about here on.
_WORTH_SHARING = 2e9


def split_cpu(devices: int, batch_size: int) -> None:
  """Make the CPU appear to XLA as several devices. To be called before jax is first used.

  XLA runs a convolution with 32 or more channels on one core only; one device per core under the
  same mapped step uses them all.

  Args:
    devices: how many; 0 takes as many as there are cores and as divide `batch_size`.
    batch_size: examples of one step.
  """
  if not devices:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = next(n for n in range(max(1, cores or 1), 0, -1) if batch_size % n == 0)
  jax.config.update("jax_num_cpu_devices", devices)


def local_devices(count: int, batch_size: int, accumulate: int = 1) -> list[jax.Device]:
  """The devices of this process that share each step's batch.

  Args:
    count: how many; 0 takes all.
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


def worth_sharing(
  devices: Sequence[jax.Device], multiply_adds: Sequence[int | None], batch_size: int
) -> list[jax.Device]:
  """Those of some devices that are worth their while: all, or of a CPU's one if steps are small.

  Args:
    devices: that might share each step.
    multiply_adds: of an example's forward pass, for each of several kinds of steps; None for one
      that is not known, which counts as large.
    batch_size: examples of one step.
  """
  least = _WORTH_SHARING / batch_size
  small = all(work is not None and work < least for work in multiply_adds)
  if small and devices[0].platform == "cpu" and jax.process_count() == 1:
    return list(devices[:1])
  return list(devices)
