"""The time of our whole run over PyTorch's, for the same epochs from the same weights."""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict

from benchmarks.machine import cores
from jaxkd import models
from jaxkd.data import per_class
from jaxkd.experiment import build
from jaxkd.experiment import overrides as variants
from jaxkd.export import bundles
from jaxkd.types import Network

_SCRIPT = pathlib.Path(__file__).parent / "whole_run.py"
_CONFIG = pathlib.Path(__file__).parents[2] / "claims" / "config.py"
# Compiler option for programs that run once.
_FAST = {"xla_backend_optimization_level": 0}
# Options of our run that the plain loop does not have.
CACHED = {"cached_targets": True, "data.views": 4}
# Name -> overrides of our run.
VARIANTS: dict[str, Mapping[str, Any]] = {
  "cached": CACHED,
  "cached_device_per_core": {**CACHED, "cpu_devices": cores()},
  "uncached": {},
}


def measure(
  kinds: Mapping[str, Mapping[str, Any]] = VARIANTS,
  *,
  config: str = "kd@fashion",
  epochs: int = 20,
  rounds: int = 3,
  overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Return variant -> our run's time, compilation included, over PyTorch's, and its parts.

  Both train the config's student for `epochs` with crop and flip, and score it on the validation
  and the test split. Imports and reading the data into memory ("read_seconds" of ours) do not
  count; ours also writes checkpoints, curves and bundles. The teacher is given and untrained: the
  accuracies only show that both end alike.

  Runs take turns, each in a process of its own. "first" is the ratio when nothing was compiled on
  this machine before, "ratio" the median of the later rounds, which load the programs of the first
  from the disk; "without_compiling" leaves compilation out. "phases" has the seconds of our last
  run by phase.
  """
  with tempfile.TemporaryDirectory(prefix="jaxkd-bench-") as folder:
    home = pathlib.Path(folder)
    job = prepare(home, config, {"student.epochs": epochs, **(overrides or {})})
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ("pytorch", *kinds)}
    for number in range(rounds):
      names = list(found)
      first = number % len(names)
      for name in names[first:] + names[:first]:
        found[name].append(_made(home, name, number, job, kinds.get(name)))
  return {name: _row(found[name], found["pytorch"]) for name in kinds}


def settings_of(job: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """Return the config of our run."""
  settings = variants.load_module(_CONFIG).get_config(job["config"])
  for path, value in job["overrides"].items():
    *sections, field = path.split(".")
    section = settings
    for name in sections:
      section = section[name]
    section[field] = value
  return settings


def prepare(home: pathlib.Path, config: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
  """Write the teacher, the first weights and PyTorch's arrays; returns the job of both."""
  bundle = home / "teacher"
  job: dict[str, Any] = {
    "config": config,
    "overrides": {**overrides, "teacher.bundle": str(bundle)},
  }
  job["overrides"] |= {"teacher.rescore": False, "baseline": False}
  settings = settings_of(job)
  data = build.dataset(settings)
  teacher, student = (
    models.create(name, num_classes=data.num_classes)
    for name in (settings.teacher.model, settings.student.model)
  )
  images = np.zeros((1, *data.image_shape), np.float32)
  weights = {
    role: jax.jit(network.init, compiler_options=_FAST)(jax.random.key(number), images)
    for number, (role, network) in enumerate({"teacher": teacher, "student": student}.items())
  }
  # Untrained: a step takes the same time with any weights of the teacher.
  bundles.save_bundle(
    bundle,
    Network(teacher, weights["teacher"]),
    {
      "num_classes": data.num_classes,
      "image_shape": list(data.image_shape),
      "mean": list(data.mean),
      "std": list(data.std),
    },
  )
  arrays = {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(weights).items()}
  train = per_class(data.train, settings.data.per_class, seed=settings.seed)
  for name, split in (("train", train), ("validation", data.validation), ("test", data.test)):
    arrays[f"{name}_images"] = split.fetch(np.arange(len(split)))
    arrays[f"{name}_labels"] = np.asarray(split.labels)
  np.savez(home / "arrays.npz", **arrays)
  # The architecture is in the bundle.
  job["overrides"]["teacher.model"] = ""
  recipe = settings.student
  each_epoch = -(-len(train) // settings.batch_size)
  return job | {
    "arrays": str(home / "arrays.npz"),
    "seed": settings.seed,
    "teacher": settings.teacher.model,
    "student": recipe.model,
    "num_classes": data.num_classes,
    "mean": list(data.mean),
    "std": list(data.std),
    "batch_size": settings.batch_size,
    "steps": each_epoch * recipe.epochs,
    "warmup_steps": max(1, round(recipe.warmup_epochs * each_epoch)),
    "crop": settings.data.crop,
    "channels_last": True,
    "temperature": settings.method.temperature,
    "kd_weight": settings.method.weight,
    "label_weight": settings.method.label_weight,
    "learning_rate": settings.method.learning_rate or recipe.learning_rate,
    "momentum": recipe.momentum,
    "weight_decay": recipe.weight_decay,
  }


def _made(
  home: pathlib.Path,
  name: str,
  number: int,
  job: Mapping[str, Any],
  overrides: Mapping[str, Any] | None,
) -> dict[str, Any]:
  """Train once in a process of its own."""
  who = "pytorch" if overrides is None else "jaxkd"
  own = dict(job) | {"workdir": str(home / f"{name}-{number}")}
  own["overrides"] = {**job["overrides"], **(overrides or {})}
  path = home / f"{name}-{number}.json"
  path.write_text(json.dumps(own))
  environment = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(home / f"compiled-{name}"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  done = subprocess.run(
    [sys.executable, str(_SCRIPT), who, str(path)], env=environment, text=True, capture_output=True
  )
  if done.returncode:
    raise RuntimeError(f"the run {path.stem} failed:\n{done.stderr[-4000:]}")
  return json.loads(done.stdout.splitlines()[-1])


def _row(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> dict[str, Any]:
  ratios = [a["seconds"] / b["seconds"] for a, b in zip(ours, theirs, strict=True)]
  without = [
    (a["seconds"] - a["compile_seconds"]) / b["seconds"] for a, b in zip(ours, theirs, strict=True)
  ]
  if any(run["steps"] != ours[0]["steps"] for run in (*ours, *theirs)):
    raise AssertionError("the runs made different numbers of steps")
  return {
    "ratio": round(statistics.median(ratios[1:] or ratios), 3),
    "first": round(ratios[0], 3),
    "without_compiling": round(statistics.median(without), 3),
    "seconds": [round(run["seconds"], 2) for run in ours],
    "compile_seconds": [round(run["compile_seconds"], 2) for run in ours],
    "read_seconds": [round(run["read_seconds"], 2) for run in ours],
    "pytorch_seconds": [round(run["seconds"], 2) for run in theirs],
    "accuracy": ours[0]["accuracy"],
    "pytorch_accuracy": theirs[0]["accuracy"],
    "phases": ours[-1]["phases"],
    "steps": ours[0]["steps"],
    "rounds": len(ours),
  }
