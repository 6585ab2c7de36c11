"""The machine of the measurements: versions, processor, and the rate of its matrix products."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import time
from typing import Any

import jax
import jax.numpy as jnp

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "torchdistill")


def versions() -> dict[str, str]:
  """Return package -> version, of installed packages."""
  found = {"python": platform.python_version()}
  for package in _PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def machine() -> dict[str, Any]:
  """Return processor, usable cores, memory, and the load of the last minutes."""
  pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return {
    "processor": _processor(),
    "cores": cores(),
    "memory_gib": round(pages / 2**30, 1),
    "system": platform.platform(),
    "load": [round(load, 2) for load in os.getloadavg()],
  }


def cores() -> int:
  """Return the number of cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def matmul_peak(size: int = 2048, tries: int = 10) -> dict[str, float]:
  """Return GFLOP/s of the best of several float32 matrix products, of XLA and PyTorch."""
  x = jnp.ones((size, size), jnp.float32)
  multiply = jax.jit(jnp.matmul)
  found = {"xla": _best_rate(lambda: jax.block_until_ready(multiply(x, x)), size, tries)}
  try:
    import torch
  except ModuleNotFoundError:
    return found
  y = torch.ones(size, size)
  found["pytorch"] = _best_rate(lambda: torch.mm(y, y), size, tries)
  return found


def _best_rate(multiply: Any, size: int, tries: int) -> float:
  multiply()
  best = float("inf")
  for _ in range(tries):
    start = time.perf_counter()
    multiply()
    best = min(best, time.perf_counter() - start)
  return round(2 * size**3 / best / 1e9, 1)


def _processor() -> str:
  path = pathlib.Path("/proc/cpuinfo")
  if path.exists():
    for line in path.read_text().splitlines():
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  return platform.processor() or platform.machine()
