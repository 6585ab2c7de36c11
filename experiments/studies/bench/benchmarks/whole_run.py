"""Time one whole run, ours or PyTorch's, after all imports and the reading of the data.

    python experiments/studies/bench/benchmarks/whole_run.py jaxkd JOB.json

Every run has a process of its own, without programs that an earlier one compiled. Prints one JSON
line. JOB.json is written by `benchmarks.whole_runs`.
"""

from __future__ import annotations

import importlib
import json
import pathlib
import sys
import time
from typing import Any

import numpy as np

# Modules that a run imports late; imports are not part of its time.
_LATE = ("grain", "tensorflow_datasets", "matplotlib.pyplot", "tensorboardX", "orbax.checkpoint")


def main(who: str, job: dict[str, Any]) -> dict[str, Any]:
  """Train once; returns the seconds and the accuracy on the test split."""
  return {"jaxkd": _ours, "pytorch": _theirs}[who](job)


def _ours(job: dict[str, Any]) -> dict[str, Any]:
  import io

  import jax
  from absl import logging
  from rich.console import Console

  from benchmarks.phases import Phases
  from benchmarks.whole_runs import settings_of
  from jaxkd.experiment import build
  from jaxkd.experiment import run as experiment
  from jaxkd.runtime import devices, memory

  logging.set_verbosity(logging.WARNING)
  for module in _LATE:
    importlib.import_module(module)
  settings = settings_of(job)
  memory.tune_malloc()
  devices.set_cpu_devices(settings.cpu_devices, settings.batch_size)
  compiling = 0.0

  def heard(event: str, seconds: float, **_: Any) -> None:
    nonlocal compiling
    if event == "/jax/core/compile/backend_compile_duration":
      compiling += seconds

  jax.monitoring.register_event_duration_secs_listener(heard)
  reading = time.perf_counter()
  data = build.dataset(settings)
  start = time.perf_counter()
  with Phases() as phases:
    summary = experiment.run(
      settings,
      pathlib.Path(job["workdir"]),
      Console(file=io.StringIO()),
      load_data=lambda *_, **__: data,
    )
  seconds = time.perf_counter() - start
  student = summary["stages"]["distilled"]
  return {
    "seconds": seconds,
    "read_seconds": start - reading,
    "compile_seconds": compiling,
    "phases": phases.seconds,
    "accuracy": student["accuracy"],
    "steps": student["steps"],
    "devices": jax.local_device_count(),
  }


def _theirs(job: dict[str, Any]) -> dict[str, Any]:
  import torch

  from benchmarks.machine import cores
  from benchmarks.torch_run import run

  torch.set_num_threads(cores())
  with np.load(job["arrays"]) as file:
    arrays = dict(file)
  start = time.perf_counter()
  found = run(job, arrays)
  return {"seconds": time.perf_counter() - start, "compile_seconds": 0.0, **found}


if __name__ == "__main__":
  # The folder of the package, as for the scripts in experiments/studies/bench.
  sys.path[0] = str(pathlib.Path(__file__).parents[1])
  print(json.dumps(main(sys.argv[1], json.loads(pathlib.Path(sys.argv[2]).read_text()))))
