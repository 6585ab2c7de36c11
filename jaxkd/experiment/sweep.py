"""Sweeps: many runs at once, spread over the machine's cores or accelerator devices.

Small networks train faster side by side, each on one core or device, than one after the other on
all of them. A worker makes run after run: it imports once, and loads a seed's data once.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import graphlib
import itertools
import json
import math
import os
import pathlib
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import jax

from jaxkd.errors import needed_by

with needed_by("jaxkd.experiment.sweep"):
  import ml_collections
  from rich.console import Console

from absl import logging

from jaxkd import report
from jaxkd.data import Dataset, check_name, load
from jaxkd.errors import ConfigError, DiskError
from jaxkd.experiment import config
from jaxkd.experiment import run as experiment
from jaxkd.experiment.workers import Ended, Slot, Workers, slots
from jaxkd.runtime import compilation, devices, memory


class Job(NamedTuple):
  """A run of a sweep.

  Attributes:
    settings: its config, as for `experiment.run`.
    folder: its work directory.
    after: folders of the runs that must be complete before it starts, such as its teacher's.
  """

  settings: ml_collections.ConfigDict
  folder: pathlib.Path
  after: tuple[pathlib.Path, ...] = ()


class _Outcome(NamedTuple):
  """The end of a run: an accuracy, NaN without one; or an error, which may be a mistake."""

  seconds: float = 0.0
  accuracy: float = math.nan
  error: str = ""
  mistake: bool = False


_Outcomes = Generator[tuple[Job, _Outcome], None, None]

# Runs after which a process drops its compiled programs, which jax would keep: 35 MB of the
# smallest run. Programs that runs share are then compiled again, in two seconds.
_RUNS_PER_CLEAR = 8


def run_all(
  jobs: Sequence[Job],
  *,
  workers: int = 0,
  compiled: pathlib.Path,
  console: Console,
) -> None:
  """Run all jobs: skip complete runs, resume interrupted ones.

  All jobs are checked before any starts. After a failure no other run is started, those in progress
  are finished, and the error is raised. Accuracies depend on `workers` only through rounding.

  Several workers import the script that calls this, which needs the usual `if __name__ ==
  "__main__"`. Each has a part of the cores, or one accelerator; `settings.cpu_devices` and
  `settings.devices` have an effect with one worker only.

  Args:
    jobs: the runs, in their order, except that those that others wait for come first. A folder may
      occur twice, with the same settings.
    workers: number of processes; 0 is one per core, or one per accelerator device if there are
      any. With 1 the runs are made in this process, and `console` shows their progress.
    compiled: folder of compiled steps, shared by all runs. With several workers, the output of each
      run goes to the folder "logs" beside it.
    console: receives a line per run.

  Raises:
    ConfigError: for settings or a folder that cannot be used, or an `after` that is neither a job
      nor complete, before any run starts; for a mistake that shows during a run, naming the run.
    RuntimeError: for any other failure of a run, naming the run and the file of its traceback.
  """
  home = compiled.parent
  runs = _distinct(jobs)
  _check(runs, home, workers)
  missing = [run for run in runs if not _is_complete(run.folder)]
  done = len(runs) - len(missing)
  if done:
    console.print(f"{done} of {len(runs)} runs are complete", highlight=False)
  if not missing:
    return
  needed = {folder for run in missing for folder in run.after}
  missing.sort(key=lambda run: run.folder not in needed)

  workplaces = slots(workers, len(missing))
  if workplaces:
    line = f"{len(missing)} runs by {len(workplaces)} workers; logs in {home / 'logs'}"
    console.print(line, soft_wrap=True, highlight=False)
    outcomes = _side_by_side(missing, workplaces, compiled)
  else:
    outcomes = _one_by_one(missing, compiled, console)
  errors: list[Exception] = []
  with contextlib.closing(outcomes):
    for run, outcome in outcomes:
      name = _name(run.folder, home)
      score = "not scored" if math.isnan(outcome.accuracy) else f"{100 * outcome.accuracy:.2f}%"
      result = f"{score} in {outcome.seconds:.0f} s"
      if not outcome.error:
        done += 1
      elif outcome.mistake:
        result = f"failed: {outcome.error}"
        errors.append(ConfigError(f"{name}: {outcome.error}"))
      else:
        result = f"failed: {outcome.error}"
        where = f"; see {_log(run.folder, home)}" if workplaces else ""
        errors.append(RuntimeError(f"{name}: {outcome.error}{where}"))
      line = f"[{done}/{len(runs)}] {name}: {result}"
      console.print(line, soft_wrap=True, highlight=False, markup=False)
  if errors:
    raise errors[0]


def _distinct(jobs: Sequence[Job]) -> list[Job]:
  """Return the jobs without repetition."""
  runs: dict[pathlib.Path, Job] = {}
  for run in jobs:
    first = runs.setdefault(run.folder, run)
    if _plain(first.settings) != _plain(run.settings):
      raise ConfigError(f"{run.folder} is planned twice, with different settings")
    runs[run.folder] = first._replace(after=tuple(dict.fromkeys((*first.after, *run.after))))
  return list(runs.values())


def _check(runs: Sequence[Job], home: pathlib.Path, workers: int) -> None:
  """Raise a ConfigError if a run cannot be made."""
  folders = {run.folder for run in runs}
  for run in runs:
    name = _name(run.folder, home)
    try:
      config.check_config(run.settings)
    except ConfigError as error:
      raise ConfigError(f"{name}: {error}") from error
    check_name(run.settings.data.name, f"data set of {name}:")
    experiment.refuse_other_run(run.settings, run.folder)
    if workers != 1 and run.settings.devices > 1:
      raise ConfigError(f"{name}: devices={run.settings.devices} needs workers=1, not {workers}")
    for folder in run.after:
      if folder not in folders and not _is_complete(folder):
        raise ConfigError(f"{name} needs the run in {folder}, which is not complete")
  try:
    graphlib.TopologicalSorter({run.folder: run.after for run in runs}).prepare()
  except graphlib.CycleError as error:
    circle = ", ".join(_name(folder, home) for folder in error.args[1])
    raise ConfigError(f"runs that need each other: {circle}") from error


def _one_by_one(runs: Sequence[Job], compiled: pathlib.Path, console: Console) -> _Outcomes:
  """Make the runs in this process, until one fails."""
  _prepare_jax(compiled, runs[0].settings.cpu_devices, _batch_size(runs))
  load_data = _cached_load()
  waiting = list(runs)
  numbers = itertools.count(1)
  while run := _take_ready(waiting):
    outcome = _make(run.settings, run.folder, console, load_data)
    yield run, outcome
    if outcome.error:
      return
    _clear_compiled(next(numbers))


def _side_by_side(
  runs: Sequence[Job], workplaces: Sequence[Slot], compiled: pathlib.Path
) -> _Outcomes:
  """Let workers make the runs, until one fails; yield each when it ends."""
  waiting = list(runs)
  by_folder = {run.folder: run for run in runs}
  with Workers(workplaces, _begin, compiled, _batch_size(runs)) as workers:
    at_work = 0
    while True:
      while workers.idle and (run := _take_ready(waiting)):
        log = _log(run.folder, compiled.parent)
        workers.give((run.settings.to_dict(), run.folder, log))
        at_work += 1
      if not at_work:
        return
      for (_, folder, _), outcome in workers.results():
        at_work -= 1
        if isinstance(outcome, Ended):
          outcome = _Outcome(error=f"its process ended with status {outcome.status}")
        if outcome.error:
          waiting.clear()
        yield by_folder[folder], outcome


def _begin(compiled: pathlib.Path, batch_size: int) -> Callable[[Any], _Outcome]:
  """Prepare a worker process; return the function that makes a run."""
  _prepare_jax(compiled, 0, batch_size)  # one device for its one core
  logging.set_verbosity(logging.WARNING)
  load_data = _cached_load()
  numbers = itertools.count(1)

  def make(task: tuple[dict, pathlib.Path, pathlib.Path]) -> _Outcome:
    settings, folder, log = task
    _clear_compiled(next(numbers) - 1)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", buffering=1) as file:
      # Warnings, and output of XLA from C++.
      os.dup2(file.fileno(), 1)
      os.dup2(file.fileno(), 2)
      console = Console(file=file, width=100)
      return _make(ml_collections.ConfigDict(settings), folder, console, load_data)

  return make


def _make(
  settings: ml_collections.ConfigDict,
  folder: pathlib.Path,
  console: Console,
  load_data: Callable[..., Dataset],
) -> _Outcome:
  """Make one run."""
  started = time.monotonic()
  try:
    summary = experiment.run(settings, folder, console, load_data=load_data)
  except (ConfigError, DiskError) as error:
    return _Outcome(error=str(error), mistake=True)
  except Exception as error:  # reported by `run_all` when the runs in progress are finished
    console.print(traceback.format_exc(), soft_wrap=True, highlight=False, markup=False)
    (*_, last) = traceback.format_exception_only(error)
    return _Outcome(error=last.strip().splitlines()[0])
  # A teacher of other classes is not scored.
  scored = [math.nan, *report.run_accuracies("", summary["stages"]).values()]
  return _Outcome(time.monotonic() - started, scored[-1])


def _prepare_jax(compiled: pathlib.Path, cpu_devices: int, batch_size: int) -> None:
  compilation.enable_compilation_cache_in(compiled)
  memory.tune_malloc()
  with contextlib.suppress(RuntimeError):  # if jax is in use already, its devices stay
    devices.set_cpu_devices(cpu_devices, batch_size)


def _clear_compiled(runs: int) -> None:
  """Drop compiled programs after every _RUNS_PER_CLEAR runs."""
  if runs and runs % _RUNS_PER_CLEAR == 0:
    jax.clear_caches()
    gc.collect()


def _batch_size(runs: Sequence[Job]) -> int:
  """Return the greatest common divisor of the runs' batch sizes."""
  return math.gcd(*(run.settings.batch_size for run in runs))


def _cached_load() -> Callable[..., Dataset]:
  """Return `jaxkd.data.load` with a cache, for runs of which many have the same seed."""
  return functools.lru_cache(maxsize=2)(load)


def _take_ready(waiting: list[Job]) -> Job | None:
  """Remove and return the first run of `waiting` that can start."""
  for index, run in enumerate(waiting):
    if all(_is_complete(folder) for folder in run.after):
      return waiting.pop(index)
  return None


def _is_complete(folder: pathlib.Path) -> bool:
  return (folder / "summary.json").exists()  # written last


def _plain(settings: ml_collections.ConfigDict) -> Any:
  """Return settings in a form that can be compared."""
  return json.loads(json.dumps(settings.to_dict()))


def _name(folder: pathlib.Path, home: pathlib.Path) -> str:
  return str(folder.relative_to(home) if folder.is_relative_to(home) else folder)


def _log(folder: pathlib.Path, home: pathlib.Path) -> pathlib.Path:
  name = _name(folder, home).strip(os.sep).replace(os.sep, ",")
  return home / "logs" / f"{name}.txt"
