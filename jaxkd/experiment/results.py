"""Results of a run: its summary, and a bundle of every predictor that can stand alone."""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxkd.errors import needed_by

with needed_by("jaxkd.experiment.results"):
  import ml_collections


import jaxkd
from jaxkd import report
from jaxkd.data import Dataset
from jaxkd.errors import ConfigError, check_file_name
from jaxkd.evaluate.multi_label import MEAN_AVERAGE_PRECISION
from jaxkd.experiment import build
from jaxkd.experiment.preparation import data_facts
from jaxkd.experiment.stated_images import images_of_run
from jaxkd.export import architectures, bundles
from jaxkd.shapes import described
from jaxkd.train import Finished, Phase

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def read_summary(workdir: pathlib.Path) -> dict[str, Any]:
  """Return the content of a complete run's summary.json.

  Raises:
    ConfigError: if it is damaged.
  """
  path = workdir / "summary.json"
  try:
    summary = json.loads(path.read_text())
    _ = summary["stages"]
  except (ValueError, KeyError, TypeError) as error:
    hint = "without it the same command makes it anew from the checkpoints"
    raise ConfigError(f"{path} is damaged ({error!r}); {hint}") from error
  return summary


def save_bundles(
  settings: ml_collections.ConfigDict,
  phase: Phase,
  result: Finished,
  data: Dataset,
  workdir: pathlib.Path,
) -> list[str]:
  """Write a bundle of every scored predictor of a phase that can stand alone.

  A network whose architecture a bundle cannot hold is left out; its weights are in the phase's
  checkpoint.

  Args:
    settings: the run's config.
    phase: the finished phase.
    result: its result.
    data: the run's data set.
    workdir: the run's work directory.

  Returns:
    A line for each trained network that is left out.
  """
  left_out = []
  for predictor, network in phase.scheme.export(result.participants).items():
    check_file_name(f"predictor of phase {phase.name!r}:", predictor)
    if predictor not in result.test:
      continue  # a teacher that came trained, and is not scored again
    if why := architectures.why_not(network.module):
      if phase.epochs:  # the notes of a teacher that came trained say so
        left_out.append(f"{phase.name}: {predictor} is not written as a bundle: {why}")
      continue
    description = description_of(settings, phase, result, data, predictor)
    bundles.save_bundle(workdir / "bundles" / phase.name / predictor, network, description)
  return left_out


def description_of(
  settings: ml_collections.ConfigDict, phase: Phase, result: Finished, data: Dataset, predictor: str
) -> dict[str, Any]:
  """Return what a bundle says of a scored predictor of a phase.

  Args:
    settings: the run's config.
    phase: the finished phase.
    result: its result.
    data: the run's data set.
    predictor: its name.
  """
  network = phase.scheme.export(result.participants)[predictor]
  # A teacher that came trained may have its own preprocessing.
  images = network.preprocessing or images_of_run(build.as_seen(settings, data))
  return {
    "model": phase.label,
    "data": settings.data.name,
    "num_classes": data.num_classes,
    **(bundles.described(images) if images else {"inputs": described(data.input_shape)}),
    "method": settings.method.name,
    "stage": phase.name,  # as earlier versions' bundles have it
    "predictor": predictor,
    "test_accuracy": result.test[predictor]["accuracy"],
    **data_facts(settings.data, data),
  }


def summarize(
  config: Mapping[str, Any],
  phases: Sequence[Phase],
  results: Mapping[str, Finished],
  devices: Sequence[jax.Device],
) -> dict[str, Any]:
  """Return the summary of a run, but for its times.

  Args:
    config: the run's config, as in config.json.
    phases: its phases.
    results: phase -> its result.
    devices: devices of this process that took part.
  """
  rows = {phase.name: _row(phase, results[phase.name]) for phase in phases}
  return {
    "config": config,
    "stages": rows,  # the phases; the key is that of earlier versions' summaries
    "comparison": report.comparison(rows),
    "devices": {
      "platform": devices[0].platform,
      "kind": devices[0].device_kind,
      "count": len(devices),
      "processes": jax.process_count(),
    },
    "versions": {
      "jaxkd": jaxkd.__version__,
      "python": platform.python_version(),
      **{name: importlib.metadata.version(name) for name in _PACKAGES},
    },
  }


def _row(phase: Phase, result: Finished) -> dict[str, Any]:
  """Return a phase's entry of the summary."""
  row: dict[str, Any] = {"role": phase.role, "model": phase.label, "predictor": phase.reported}
  if phase.reported:
    network = phase.scheme.export(result.participants)[phase.reported]
    row["accuracy"] = result.test[phase.reported]["accuracy"]
    row["test"] = result.test
    if MEAN_AVERAGE_PRECISION in result.test[phase.reported]:
      row[MEAN_AVERAGE_PRECISION] = result.test[phase.reported][MEAN_AVERAGE_PRECISION]
    row["parameters"] = sum(x.size for x in jax.tree.leaves(network.variables["params"]))
  row |= {"examples": len(phase.examples), "epochs": phase.epochs, "steps": phase.steps}
  if result.rows and result.rows[-1]["epoch"] < phase.epochs:
    # It ended early (`Phase.patience`).
    row |= {name: result.rows[-1][key] for name, key in (("epochs", "epoch"), ("steps", "step"))}
    row["planned_epochs"] = phase.epochs
  if result.rows:
    row["train"] = result.rows[-1]["train"]
  return row
