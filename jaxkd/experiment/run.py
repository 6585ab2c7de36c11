"""From a config and a work directory to a finished, reported experiment."""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from jaxkd.errors import needed_by

with needed_by("jaxkd.experiment.run"):
  import ml_collections
  from rich.console import Console


import jaxkd
from jaxkd import recipes, report
from jaxkd.data import Dataset, load
from jaxkd.errors import ConfigError, check_file_name
from jaxkd.experiment import build
from jaxkd.experiment.networks import images_of_run
from jaxkd.export import bundles
from jaxkd.runtime import devices, processes
from jaxkd.runtime.compilation import Stopwatch
from jaxkd.runtime.processes import LOCK, workdir_lock
from jaxkd.runtime.signals import Interruption
from jaxkd.train import NonFinite, Reporter, Stage, starting_variables, train_stage
from jaxkd.train.checkpoints import check_checkpoints
from jaxkd.train.loop import Finished
from jaxkd.train.reporting import Row

# A run may go on on other hardware than it was begun on, and after a step that was not finite under
# another policy, which says nothing of those before.
_MAY_CHANGE = (
  "devices",
  "cpu_devices",
  "checkpoint_seconds",
  "resident_megabytes",
  "steps_per_dispatch",
  "nonfinite",
  "rollback_factor",
  "rollbacks",
)


def run(
  settings: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  console: Console,
  *,
  load_data: Callable[..., Dataset] | None = None,
  stop: Interruption | None = None,
) -> dict[str, Any]:
  """Trains every stage of a config in `workdir`, or goes on where an earlier run stopped.

  Leaves there config.json, metrics.jsonl, summary.json, curves.png, TensorBoard events, the
  stages' checkpoints, and a bundle for every predictor that can stand alone.

  Args:
    settings: from a file in `configs/`.
    workdir: made if absent; refused if it holds the run of another config.
    console: where progress and the closing table go.
    load_data: in place of `jaxkd.data.load`, such as one that remembers what it loaded.
    stop: asked to stop, the run saves what it has made and raises Interrupted.

  Returns:
    The summary, as in summary.json.

  Raises:
    ConfigError: one line naming the field or path, before anything is compiled or written.
    DiskError: one line naming what cannot be written. When it can, the same goes on.
  """
  recipes.check_config(settings)
  refuse_other_run(settings, workdir)
  finished = workdir / "summary.json"
  if finished.exists():
    summary = read_summary(workdir)
    console.print(f"the run in {workdir} is complete", soft_wrap=True)
    console.print(report.closing_table(summary))
    return summary

  chosen = devices.local_devices(settings.devices, settings.batch_size, settings.accumulate)
  if (workdir / "config.json").exists():
    with workdir_lock(workdir):
      pass  # Whoever comes second is told before data are loaded.
  data = build.dataset(settings, load_data or load)
  stages = build.stages(settings, data)
  if not settings.devices and not settings.cpu_devices:
    steps = [stage.multiply_adds for stage in stages if stage.epochs]
    chosen = devices.choose_devices(chosen, steps, settings.batch_size)
  for stage in stages:
    check_checkpoints(workdir / "checkpoints" / stage.name)
  # Nobody writes before everybody has looked.
  processes.barrier("work directory checked")
  with workdir_lock(workdir):
    return _make(settings, stages, data, workdir, chosen, console, stop or Interruption())


def _make(
  settings: ml_collections.ConfigDict,
  stages: Sequence[Stage],
  data: Dataset,
  workdir: pathlib.Path,
  chosen: Sequence[jax.Device],
  console: Console,
  stop: Interruption,
) -> dict[str, Any]:
  """The run, once nothing speaks against it; returns the summary."""
  if processes.is_first_process():
    report.write_atomically(workdir / "config.json", _as_json(settings))
    for remark in recipes.remarks(settings):
      console.print(remark, soft_wrap=True, highlight=False, markup=False)
    for stage in stages:
      for note in stage.notes:
        console.print(f"{stage.name}: {note}", soft_wrap=True, highlight=False, markup=False)
  started = time.monotonic()
  with Stopwatch() as compiling:
    results = _train_all(settings, stages, data, workdir, chosen, console, stop)
  summary = _summary(settings, stages, results, data, chosen)
  seconds = time.monotonic() - started
  summary |= {"seconds": round(seconds, 1), "compile_seconds": round(compiling.seconds, 1)}
  if not processes.is_first_process():
    return summary
  rows = [row for result in results.values() for row in result.rows]
  title = f"{settings.method.name} on {settings.data.name}, seed {settings.seed}"
  report.draw_curves(workdir / "curves.png", rows, summary["stages"], title)
  # Written last: its presence says that everything else is there.
  report.write_atomically(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
  console.print(report.closing_table(summary))
  told = f"{seconds:.0f} seconds, of which tracing and compiling took {compiling.seconds:.0f}"
  console.print(told, highlight=False)
  return summary


def read_summary(workdir: pathlib.Path) -> dict[str, Any]:
  """What a complete run left in its summary.json.

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


def refuse_other_run(settings: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
  """Raises a ConfigError if `workdir` holds the run of a different config.

  A field that did not exist when the run was begun counts as having had its default.
  """
  path = workdir / "config.json"
  if not path.exists():
    if workdir.exists() and (
      not workdir.is_dir()
      or any(p.suffix != ".partial" and p.name != LOCK for p in workdir.iterdir())
    ):
      raise ConfigError(f"workdir {workdir} is not empty and holds no run; choose another")
    return
  try:
    stored = _relevant(json.loads(path.read_text()))
    defaults = _relevant(json.loads(_as_json(recipes.base_config(stored["method"]["name"]))))
    have = dict(_leaves(defaults)) | dict(_leaves(stored))
  except (ValueError, AttributeError, KeyError, TypeError, ConfigError) as error:
    raise ConfigError(f"{path} is damaged: {error}") from error
  want = dict(_leaves(_relevant(json.loads(_as_json(settings)))))
  different = sorted(k for k in have.keys() | want.keys() if have.get(k) != want.get(k))
  if different:
    shown = ", ".join(f"{k}={have.get(k)!r} there, {want.get(k)!r} asked" for k in different[:3])
    more = f" and {len(different) - 3} more fields" if len(different) > 3 else ""
    raise ConfigError(f"workdir {workdir} holds another config's run ({shown}{more})")


def _train_all(
  settings: ml_collections.ConfigDict,
  stages: Sequence[Stage],
  data: Dataset,
  workdir: pathlib.Path,
  chosen: Sequence[jax.Device],
  console: Console,
  stop: Interruption,
) -> dict[str, Finished]:
  reporter = _Everyone([])
  if processes.is_first_process():
    reporter = _Everyone(
      [
        report.MetricsFile(workdir / "metrics.jsonl"),
        report.TensorBoard(workdir / "tensorboard"),
        report.ProgressBar(console) if console.is_terminal else report.Lines(console),
      ]
    )
  results: dict[str, Finished] = {}
  for stage in stages:
    given = starting_variables(stage, {name: r.participants for name, r in results.items()})
    results[stage.name] = train_stage(
      stage,
      directory=workdir / "checkpoints" / stage.name,
      devices=chosen,
      reporter=reporter,
      given=given,
      validation=data.validation,
      test=data.test,
      evaluate_every=settings.evaluate_every,
      checkpoint_seconds=settings.checkpoint_seconds,
      steps_per_dispatch=settings.steps_per_dispatch,
      # Of each process its own: it may be a disk of its own.
      targets=workdir / "targets" / stage.name / f"process_{jax.process_index()}",
      stop=stop,
      nonfinite=NonFinite(settings.nonfinite, settings.rollback_factor, settings.rollbacks),
    )
    if processes.is_first_process():
      _save_bundles(settings, stage, results[stage.name], data, workdir)
  return results


def _save_bundles(
  settings: ml_collections.ConfigDict,
  stage: Stage,
  result: Finished,
  data: Dataset,
  workdir: pathlib.Path,
) -> None:
  for predictor, network in stage.scheme.export(result.participants).items():
    check_file_name(f"predictor of stage {stage.name!r}:", predictor)
    if predictor not in result.test:
      continue  # a teacher that came trained, and is not scored again
    # A teacher that came trained may have been trained on others than the run's.
    images = network.preprocessing or images_of_run(build.as_seen(settings, data))
    description = {
      "model": stage.label,
      "data": settings.data.name,
      "num_classes": data.num_classes,
      "image_shape": list(images.image_shape),
      "mean": list(images.mean),
      "std": list(images.std),
      "method": settings.method.name,
      "stage": stage.name,
      "predictor": predictor,
      "test_accuracy": result.test[predictor]["accuracy"],
    }
    bundles.save_bundle(workdir / "bundles" / stage.name / predictor, network, description)


def _summary(
  settings: ml_collections.ConfigDict,
  stages: Sequence[Stage],
  results: Mapping[str, Finished],
  data: Dataset,
  chosen: Sequence[jax.Device],
) -> dict[str, Any]:
  rows = {}
  for stage in stages:
    result = results[stage.name]
    row: dict[str, Any] = {"model": stage.label, "predictor": stage.reported}
    if stage.reported:
      network = stage.scheme.export(result.participants)[stage.reported]
      row["accuracy"] = result.test[stage.reported]["accuracy"]
      row["test"] = result.test
      row["parameters"] = sum(x.size for x in jax.tree.leaves(network.variables["params"]))
    row |= {"examples": len(stage.examples), "epochs": stage.epochs, "steps": stage.steps}
    if result.rows:
      row["train"] = result.rows[-1]["train"]
    rows[stage.name] = row
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
  return {
    "config": json.loads(_as_json(settings)),
    "stages": rows,
    "comparison": report.comparison(rows),
    "devices": {
      "platform": chosen[0].platform,
      "kind": chosen[0].device_kind,
      "count": len(chosen),
      "processes": jax.process_count(),
    },
    "versions": {
      "jaxkd": jaxkd.__version__,
      "python": platform.python_version(),
      **{name: importlib.metadata.version(name) for name in packages},
    },
  }


def _as_json(settings: ml_collections.ConfigDict) -> str:
  return json.dumps(settings.to_dict(), indent=2, sort_keys=True) + "\n"


def _relevant(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config without the network that its method does not train, and without where it is run."""
  name = config["method"]["name"]
  unused = "student" if name == "teacher" else None if recipes.is_taught(name) else "teacher"
  return {
    section: fields
    for section, fields in config.items()
    if section != unused and section not in _MAY_CHANGE
  }


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, f"{path}{key}.")
    else:
      yield f"{path}{key}", value


class _Everyone:
  """Hands every report to several reporters."""

  def __init__(self, reporters: Sequence[Reporter]) -> None:
    self._reporters = reporters

  def begins_after(self, updates: int) -> None:
    for reporter in self._reporters:
      reporter.begins_after(updates)

  def stage_started(self, stage: str, steps: int, rows: list[Row]) -> None:
    for reporter in self._reporters:
      reporter.stage_started(stage, steps, rows)

  def told(self, line: str) -> None:
    for reporter in self._reporters:
      reporter.told(line)

  def stepped(self, metrics: Mapping[str, float], images: int) -> None:
    for reporter in self._reporters:
      reporter.stepped(metrics, images)

  def epoch_ended(self, row: Row) -> None:
    for reporter in self._reporters:
      reporter.epoch_ended(row)

  def went_back(self, stage: str, rows: list[Row]) -> None:
    for reporter in self._reporters:
      reporter.went_back(stage, rows)

  def stage_ended(self, stage: str) -> None:
    for reporter in self._reporters:
      reporter.stage_ended(stage)
