"""The runs of the claims' config file."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxkd import methods
from jaxkd.errors import ConfigError
from jaxkd.experiment import overrides, sweep
from reproduction.results import Runs

TEACHER = "teacher"


def claimed(
  config: Any, workdir: pathlib.Path, *, quick: bool = False
) -> tuple[Runs, list[sweep.Job]]:
  """Return the runs of every seed, with the chosen hyperparameters.

  Args:
    config: the module of a file such as `experiments/studies/claims/config.py`.
    workdir: directory of the runs.
    quick: fewer seeds, shorter training.

  Raises:
    ConfigError: for a run without chosen hyperparameters.
  """

  def settings(setting: str, run: str) -> ConfigDict:
    if run not in config.CHOSEN[setting]:
      raise ConfigError(f"CHOSEN[{setting!r}] has no {run!r}: choose by --search first")
    found = _settings(config, setting, f"{config.RUNS[setting][run]}/{config.CHOSEN[setting][run]}")
    if quick:
      config.quick(found)
    return found

  seeds = config.QUICK_SEEDS if quick else config.SEEDS
  runs = Runs(workdir, seeds, settings, config)
  planned = [
    _planned(settings(setting, run), runs.folder(setting, run, seed), seed, runs.teacher)
    for setting, of_setting in seeds.items()
    for seed in of_setting
    for run in config.RUNS[setting]
  ]
  return runs, [_teacher(config, runs.teacher, quick), *planned]


Candidates = dict[tuple[str, str], dict[str, list[pathlib.Path]]]


def candidates(config: Any, workdir: pathlib.Path) -> tuple[Candidates, list[sweep.Job]]:
  """Return the candidates, (setting, run) -> changes -> folders of the runs, and those runs."""
  return _tried(config, workdir, "search", config.SEARCH, config.SEARCH_SEEDS, config.RUNS)


def questions(config: Any, workdir: pathlib.Path) -> tuple[Candidates, list[sweep.Job]]:
  """Return as `candidates`, of the runs about contradicted claims."""
  chosen = {
    setting: {run: f"{name}/{config.CHOSEN[setting][run]}" for run, name in runs.items()}
    for setting, runs in config.RUNS.items()
  }
  return _tried(config, workdir, "why", config.WHY, config.WHY_SEEDS, chosen)


def _tried(
  config: Any,
  workdir: pathlib.Path,
  part: str,
  tries: Mapping[str, Mapping[str, Sequence[str]]],
  seeds: Mapping[str, Sequence[int]],
  runs: Mapping[str, Mapping[str, str]],
) -> tuple[Candidates, list[sweep.Job]]:
  found: Candidates = {}
  planned = [_teacher(config, workdir / TEACHER, quick=False)]
  for setting, of_setting in tries.items():
    for run, tried in of_setting.items():
      for changes in tried:
        settings = _settings(config, setting, "/".join(filter(None, (runs[setting][run], changes))))
        # Some candidates may diverge; an error would end the whole search.
        settings.nonfinite = "rollback"
        folders = found.setdefault((setting, run), {}).setdefault(changes, [])
        name = ",".join([f"{setting}-{run}", *filter(None, changes.split("/"))])
        for seed in seeds[setting]:
          folders.append(workdir / part / f"seed{seed}" / name)
          planned.append(_planned(settings, folders[-1], seed, workdir / TEACHER))
  return found, planned


def _settings(config: Any, setting: str, name: str) -> ConfigDict:
  return overrides.variant(lambda method: config.get_config(f"{method}@{setting}"), name)


def _teacher(config: Any, folder: pathlib.Path, quick: bool) -> sweep.Job:
  """Return the run of the shared teacher, in the first setting."""
  settings = _settings(config, next(iter(config.RUNS)), TEACHER)
  if quick:
    config.quick(settings)
  return sweep.Job(settings, folder)


def _planned(
  settings: ConfigDict, folder: pathlib.Path, seed: int, teacher: pathlib.Path
) -> sweep.Job:
  """Return one seed's run, with the teacher of a folder if it needs one."""
  settings = settings.copy_and_resolve_references()
  settings.seed = seed
  if methods.is_taught(settings.method.name):
    settings.teacher.bundle = str(teacher / "bundles" / TEACHER / TEACHER)
    return sweep.Job(settings, folder, (teacher,))
  return sweep.Job(settings, folder)
