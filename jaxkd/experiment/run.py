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
from jaxkd import methods, report
from jaxkd.data import Dataset, load
from jaxkd.errors import ConfigError, check_file_name
from jaxkd.experiment import build, config
from jaxkd.experiment.networks import images_of_run
from jaxkd.export import bundles
from jaxkd.runtime import devices
from jaxkd.runtime.process import LOCK, Stopwatch, claimed
from jaxkd.runtime.signals import Interruption
from jaxkd.train import NonFinite, Phase, Reporter, starting_variables, train_phase
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
  """Trains every phase of a config in `workdir`, or goes on where an earlier run stopped.

  Leaves there config.json, metrics.jsonl, summary.json, curves.png, TensorBoard events, the
  phases' checkpoints, and a bundle for every predictor that can stand alone.

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
  config.check_config(settings)
  refuse_other_run(settings, workdir)
  finished = workdir / "summary.json"
  if finished.exists():
    summary = read_summary(workdir)
    console.print(f"the run in {workdir} is complete", soft_wrap=True)
    console.print(report.closing_table(summary))
    return summary

  chosen = devices.local_devices(settings.devices, settings.batch_size, settings.accumulate)
  if (workdir / "config.json").exists():
    with claimed(workdir):
      pass  # Whoever comes second is told before data are loaded.
  data = build.dataset(settings, load_data or load)
  phases = build.stages(settings, data)
  if not settings.devices and not settings.cpu_devices:
    steps = [phase.multiply_adds for phase in phases if phase.epochs]
    chosen = devices.worth_sharing(chosen, steps, settings.batch_size)
  for phase in phases:
    check_checkpoints(workdir / "checkpoints" / phase.name)
  # Nobody writes before everybody has looked.
  devices.wait_for_everyone("work directory checked")
  with claimed(workdir):
    return _make(settings, phases, data, workdir, chosen, console, stop or Interruption())


def _make(
  settings: ml_collections.ConfigDict,
  phases: Sequence[Phase],
  data: Dataset,
  workdir: pathlib.Path,
  chosen: Sequence[jax.Device],
  console: Console,
  stop: Interruption,
) -> dict[str, Any]:
  """The run, once nothing speaks against it; returns the summary."""
  if devices.is_first_process():
    report.write_atomically(workdir / "config.json", _as_json(settings))
    for remark in config.remarks(settings):
      console.print(remark, soft_wrap=True, highlight=False, markup=False)
    for phase in phases:
      for note in phase.notes:
        console.print(f"{phase.name}: {note}", soft_wrap=True, highlight=False, markup=False)
  started = time.monotonic()
  with Stopwatch() as compiling:
    results = _train_all(settings, phases, data, workdir, chosen, console, stop)
  summary = _summary(settings, phases, results, data, chosen)
  seconds = time.monotonic() - started
  summary |= {"seconds": round(seconds, 1), "compile_seconds": round(compiling.seconds, 1)}
  if not devices.is_first_process():
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
    defaults = _relevant(json.loads(_as_json(config.base_config(stored["method"]["name"]))))
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
  phases: Sequence[Phase],
  data: Dataset,
  workdir: pathlib.Path,
  chosen: Sequence[jax.Device],
  console: Console,
  stop: Interruption,
) -> dict[str, Finished]:
  reporter = _Everyone([])
  if devices.is_first_process():
    reporter = _Everyone(
      [
        report.MetricsFile(workdir / "metrics.jsonl"),
        report.TensorBoard(workdir / "tensorboard"),
        report.ProgressBar(console) if console.is_terminal else report.Lines(console),
      ]
    )
  results: dict[str, Finished] = {}
  for phase in phases:
    given = starting_variables(phase, {name: r.participants for name, r in results.items()})
    results[phase.name] = train_phase(
      phase,
      directory=workdir / "checkpoints" / phase.name,
      devices=chosen,
      reporter=reporter,
      given=given,
      validation=data.validation,
      test=data.test,
      evaluate_every=settings.evaluate_every,
      checkpoint_seconds=settings.checkpoint_seconds,
      steps_per_dispatch=settings.steps_per_dispatch,
      # Of each process its own: it may be a disk of its own.
      targets=workdir / "targets" / phase.name / f"process_{jax.process_index()}",
      stop=stop,
      nonfinite=NonFinite(settings.nonfinite, settings.rollback_factor, settings.rollbacks),
    )
    if devices.is_first_process():
      _save_bundles(settings, phase, results[phase.name], data, workdir)
  return results


def _save_bundles(
  settings: ml_collections.ConfigDict,
  phase: Phase,
  result: Finished,
  data: Dataset,
  workdir: pathlib.Path,
) -> None:
  for predictor, network in phase.scheme.export(result.participants).items():
    check_file_name(f"predictor of phase {phase.name!r}:", predictor)
    if predictor not in result.test:
      continue  # a teacher that came trained, and is not scored again
    # A teacher that came trained may have been trained on others than the run's.
    images = network.preprocessing or images_of_run(build.as_seen(settings, data))
    description = {
      "model": phase.label,
      "data": settings.data.name,
      "num_classes": data.num_classes,
      "image_shape": list(images.image_shape),
      "mean": list(images.mean),
      "std": list(images.std),
      "method": settings.method.name,
      "stage": phase.name,
      "predictor": predictor,
      "test_accuracy": result.test[predictor]["accuracy"],
    }
    bundles.save_bundle(workdir / "bundles" / phase.name / predictor, network, description)


def _summary(
  settings: ml_collections.ConfigDict,
  phases: Sequence[Phase],
  results: Mapping[str, Finished],
  data: Dataset,
  chosen: Sequence[jax.Device],
) -> dict[str, Any]:
  rows = {}
  for phase in phases:
    result = results[phase.name]
    row: dict[str, Any] = {"model": phase.label, "predictor": phase.reported}
    if phase.reported:
      network = phase.scheme.export(result.participants)[phase.reported]
      row["accuracy"] = result.test[phase.reported]["accuracy"]
      row["test"] = result.test
      row["parameters"] = sum(x.size for x in jax.tree.leaves(network.variables["params"]))
    row |= {"examples": len(phase.examples), "epochs": phase.epochs, "steps": phase.steps}
    if result.rows:
      row["train"] = result.rows[-1]["train"]
    rows[phase.name] = row
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
  return {
    "config": json.loads(_as_json(settings)),
    "stages": rows,  # the phases; the key is that of earlier versions' summaries
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
  unused = "student" if name == "teacher" else None if methods.is_taught(name) else "teacher"
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

  def phase_started(self, phase: str, steps: int, rows: list[Row]) -> None:
    for reporter in self._reporters:
      reporter.phase_started(phase, steps, rows)

  def told(self, line: str) -> None:
    for reporter in self._reporters:
      reporter.told(line)

  def stepped(self, metrics: Mapping[str, float], images: int) -> None:
    for reporter in self._reporters:
      reporter.stepped(metrics, images)

  def epoch_ended(self, row: Row) -> None:
    for reporter in self._reporters:
      reporter.epoch_ended(row)

  def went_back(self, phase: str, rows: list[Row]) -> None:
    for reporter in self._reporters:
      reporter.went_back(phase, rows)

  def phase_ended(self, phase: str) -> None:
    for reporter in self._reporters:
      reporter.phase_ended(phase)
