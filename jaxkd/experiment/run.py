"""An experiment, from a config and a work directory to its results."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from jaxkd.errors import needed_by

with needed_by("jaxkd.experiment.run"):
  import ml_collections
  from rich.console import Console


from jaxkd import methods, report
from jaxkd.data import Dataset, load
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config, overrides
from jaxkd.experiment.extension import begin_extension
from jaxkd.experiment.given import NOTHING_GIVEN, Given
from jaxkd.experiment.preparation import data_lines
from jaxkd.experiment.results import read_summary, save_bundles, summarize
from jaxkd.runtime import devices, processes
from jaxkd.runtime.compilation import Stopwatch
from jaxkd.runtime.processes import LOCK, workdir_lock
from jaxkd.runtime.signals import Interruption
from jaxkd.train import (
  Finished,
  NonFinite,
  Phase,
  Reporter,
  Reporters,
  TrainOptions,
  starting_variables,
  train_phase,
)
from jaxkd.train.checkpoints import check_checkpoints

# Fields that may differ when a run is resumed: the hardware, and the policy for steps that are not
# finite, which does not affect the steps before.
_MAY_CHANGE = (
  "devices",
  "cpu_devices",
  "checkpoint_seconds",
  "resident_megabytes",
  "steps_per_dispatch",
  "nonfinite",
  "rollback_factor",
  "rollbacks",
  "reporters",
)


@dataclasses.dataclass(frozen=True)
class Run:
  """A run whose config and work directory are checked.

  Attributes:
    settings: its config.
    phases: what it trains, in order.
    data: its data set.
    workdir: its work directory.
    devices: devices of this process that share each batch.
    console: receives progress and the closing table.
    stop: when it is set, the run saves a checkpoint and ends.
    given: networks in place of those that the config names.
    reporters: receivers of its progress besides its files and its console.
  """

  settings: ml_collections.ConfigDict
  phases: Sequence[Phase]
  data: Dataset
  workdir: pathlib.Path
  devices: Sequence[jax.Device]
  console: Console
  stop: Interruption
  given: Given = NOTHING_GIVEN
  reporters: Sequence[Reporter] = ()


def run(
  settings: ml_collections.ConfigDict | str,
  workdir: pathlib.Path | str,
  console: Console | None = None,
  *,
  load_data: Callable[..., Dataset] | None = None,
  stop: Interruption | None = None,
  reporters: Sequence[Reporter] = (),
  extend: bool = False,
) -> dict[str, Any]:
  """Train every phase of a config in `workdir`, or resume an interrupted run.

  Writes config.json, metrics.jsonl, summary.json, curves.png, TensorBoard events, the phases'
  checkpoints, and a bundle for every predictor that can stand alone.

  Args:
    settings: a config, or the text FILE.py:METHOD, such as "configs/digits.py:simkd".
    workdir: created if absent; refused if it holds the run of another config.
    console: receives progress and the closing table; None is standard output.
    load_data: replaces `jaxkd.data.load`, for example with a caching function.
    stop: when it is set, the run saves a checkpoint and raises Interrupted.
    reporters: further receivers of the progress.
    extend: whether a finished run may go on to more epochs (`jaxkd.experiment.extension`).

  Returns:
    The summary, as in summary.json.

  Raises:
    ConfigError: one line naming the field or path, before anything is compiled or written.
    DiskError: one line naming what cannot be written. The same call resumes once it can.
  """
  if isinstance(settings, str):
    settings = overrides.from_text(settings)
  workdir = pathlib.Path(workdir)
  console = Console() if console is None else console
  config.check_config(settings)
  if extend:
    begin_extension(settings, workdir, load_data or load)
  refuse_other_run(settings, workdir)
  finished = workdir / "summary.json"
  if finished.exists():
    summary = read_summary(workdir)
    console.print(f"the run in {workdir} is complete", soft_wrap=True)
    console.print(report.closing_table(summary))
    return summary
  ready = prepared(settings, workdir, console, load_data=load_data, stop=stop, reporters=reporters)
  return train(ready)[0]


def prepared(
  settings: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  console: Console,
  *,
  load_data: Callable[..., Dataset] | None = None,
  stop: Interruption | None = None,
  given: Given = NOTHING_GIVEN,
  reporters: Sequence[Reporter] = (),
) -> Run:
  """Return a run whose data are loaded, whose phases are traced, and whose work directory is its.

  Args:
    settings: a config that `check_config` accepts.
    workdir: as for `run`, and so are the other arguments.
    console: receives progress.
    load_data: replaces `jaxkd.data.load`.
    stop: ends the run when it is set.
    given: networks in place of those that the config names.
    reporters: further receivers of the progress.

  Raises:
    ConfigError: as `run`.
  """
  refuse_other_run(settings, workdir)
  # Made before data are loaded, since a package may be missing.
  reporters = [*reporters, *report.trackers(settings.get("reporters", ""), workdir.name)]
  chosen = devices.local_devices(settings.devices, settings.batch_size, settings.accumulate)
  if (workdir / "config.json").exists():
    with workdir_lock(workdir):
      pass  # Fail before data are loaded if another run holds the lock.
  data = build.dataset(settings, load_data or load)
  phases = build.phases(settings, data, given=given)
  if not settings.devices and not settings.cpu_devices:
    steps = [phase.multiply_adds for phase in phases if phase.epochs]
    chosen = devices.choose_devices(chosen, steps, settings.batch_size)
  for phase in phases:
    check_checkpoints(workdir / "checkpoints" / phase.name)
  # All processes check the work directory before any of them writes.
  processes.barrier("work directory checked")
  stop = stop or Interruption()
  return Run(settings, phases, data, workdir, chosen, console, stop, given, reporters)


def train(run: Run) -> tuple[dict[str, Any], dict[str, Finished]]:
  """Train all phases of a run, or resume them; return its summary, and its phases' results."""
  with workdir_lock(run.workdir):
    return _train(run)


def _train(run: Run) -> tuple[dict[str, Any], dict[str, Finished]]:
  """Train all phases, write the results, and return the summary and the results."""
  if processes.is_first_process():
    report.write_atomically(run.workdir / "config.json", _as_json(run.settings))
    for line in [
      *data_lines(run.data),
      *config.remarks(run.settings),
      *(f"{phase.name}: {note}" for phase in run.phases for note in phase.notes),
    ]:
      run.console.print(line, soft_wrap=True, highlight=False, markup=False)
  started = time.monotonic()
  with Stopwatch() as compiling:
    results = _train_phases(run)
  stored = json.loads(_as_json(run.settings))
  summary = summarize(stored, run.phases, results, run.devices)
  seconds = time.monotonic() - started
  summary |= {"seconds": round(seconds, 1), "compile_seconds": round(compiling.seconds, 1)}
  if not processes.is_first_process():
    return summary, results
  rows = [row for result in results.values() for row in result.rows]
  title = f"{run.settings.method.name} on {run.settings.data.name}, seed {run.settings.seed}"
  report.draw_curves(run.workdir / "curves.png", rows, summary["stages"], title)
  # Written last: it marks the run as complete.
  report.write_atomically(run.workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
  run.console.print(report.closing_table(summary))
  run.console.print(
    f"{seconds:.0f} seconds, of which tracing and compiling took {compiling.seconds:.0f}",
    highlight=False,
  )
  return summary, results


def _train_phases(run: Run) -> dict[str, Finished]:
  """Train the phases in order, and write their bundles; return their results by name."""
  settings, workdir = run.settings, run.workdir
  reporter = _reporters(run)
  results: dict[str, Finished] = {}
  for phase in run.phases:
    given = starting_variables(phase, {name: r.participants for name, r in results.items()})
    results[phase.name] = train_phase(
      dataclasses.replace(phase, given=given),
      directory=workdir / "checkpoints" / phase.name,
      devices=run.devices,
      reporter=reporter,
      validation=run.data.validation,
      test=run.data.test,
      options=TrainOptions(
        evaluate_every=settings.evaluate_every,
        checkpoint_seconds=settings.checkpoint_seconds,
        steps_per_dispatch=settings.steps_per_dispatch,
        # One directory per process: processes may not share a disk.
        targets=workdir / "targets" / phase.name / f"process_{jax.process_index()}",
        nonfinite=NonFinite(settings.nonfinite, settings.rollback_factor, settings.rollbacks),
      ),
      stop=run.stop,
    )
    if processes.is_first_process():
      for line in save_bundles(settings, phase, results[phase.name], run.data, workdir):
        run.console.print(line, soft_wrap=True, highlight=False, markup=False)
  return results


def _reporters(run: Run) -> Reporters:
  """Return the first process's reporters; other processes report nothing."""
  if not processes.is_first_process():
    return Reporters()
  return Reporters(
    [
      report.MetricsFile(run.workdir / "metrics.jsonl"),
      report.TensorBoard(run.workdir / "tensorboard"),
      report.ProgressBar(run.console) if run.console.is_terminal else report.Lines(run.console),
      *run.reporters,
    ]
  )


def refuse_other_run(settings: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
  """Raise a ConfigError if `workdir` holds the run of a different config.

  A field that did not exist when the run was begun counts as having its default.
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


def _as_json(settings: ml_collections.ConfigDict) -> str:
  return json.dumps(settings.to_dict(), indent=2, sort_keys=True) + "\n"


def _relevant(config: Mapping[str, Any]) -> dict[str, Any]:
  """Return a config without the network that its method does not train, and without hardware."""
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
