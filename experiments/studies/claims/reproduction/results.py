"""Finished runs by name, and the rows that compare them."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxkd import data, report
from jaxkd.experiment import build
from jaxkd.experiment import run as experiment
from jaxkd.export import bundles
from jaxkd.train import Phase
from jaxkd.types import Network

POINTS = "points"
FASHION, DIGITS = "fashion", "digits"


@dataclasses.dataclass(frozen=True)
class Claim:
  """One sentence of a paper or lecture, and the comparisons that test it.

  Attributes:
    number: position in the list.
    sentence: the claim.
    source: the paper or lecture.
    settings: settings in which it is tested, see `experiments/studies/claims/config.py`.
    rows: the finished runs -> one row for each comparison.
  """

  number: int
  sentence: str
  source: str
  settings: tuple[str, ...]
  rows: Callable[[Runs], list[Row]]


@dataclasses.dataclass(frozen=True)
class Row:
  """One comparison; the claim is that its difference is positive.

  Attributes:
    compared: the two sides, as "A - B".
    difference: mean over the seeds.
    low: lower end of the 95% interval.
    high: upper end of the interval.
    seeds: number of pairs of runs; 0 where nothing is random and the interval is a point.
    unit: unit of the difference.
    note: further facts, such as costs.
  """

  compared: str
  difference: float
  low: float
  high: float
  seeds: int
  unit: str = POINTS
  note: str = ""

  @property
  def verdict(self) -> report.Verdict:
    """The verdict, by the interval alone."""
    return report.verdict(self.low, self.high)


def paired(
  compared: str,
  better: Sequence[float],
  worse: Sequence[float],
  *,
  unit: str = POINTS,
  scale: float = 100.0,
  note: str = "",
) -> Row:
  """Return the row of the claim that `better` is above `worse`, seed by seed; both are scaled."""
  found = report.paired_difference([scale * x for x in better], [scale * x for x in worse])
  return Row(compared, *found, unit=unit, note=note)


def exact(compared: str, difference: float, *, unit: str, note: str = "") -> Row:
  """Return the row of a difference without randomness."""
  return Row(compared, difference, difference, difference, 0, unit, note)


# Compared and hashed by identity, so that results of methods can be cached.
@dataclasses.dataclass(frozen=True, eq=False)
class Runs:
  """The finished runs of `make claims`.

  Attributes:
    workdir: directory of the runs.
    seeds: setting -> seeds of its runs.
    settings: (setting, run) -> config, without a seed.
    constants: the config file's module (`experiments/studies/claims/config.py`).
  """

  workdir: pathlib.Path
  seeds: Mapping[str, Sequence[int]]
  settings: Callable[[str, str], Any]
  constants: Any

  def folder(self, setting: str, run: str, seed: int) -> pathlib.Path:
    """Return a run's work directory."""
    return self.workdir / f"seed{seed}" / f"{setting}-{run}"

  @property
  def teacher(self) -> pathlib.Path:
    """The work directory of the shared teacher."""
    return self.workdir / "teacher"

  def folders(self, setting: str, run: str) -> list[pathlib.Path]:
    """Return a run's work directories, seed by seed."""
    return [self.folder(setting, run, seed) for seed in self.seeds[setting]]

  def accuracies(
    self, setting: str, run: str, predictor: str = "", *, stage: str = ""
  ) -> list[float]:
    """Return the test accuracy in 0..1, seed by seed.

    Args:
      setting: setting of the run.
      run: name of the run.
      predictor: "" is the reported one of the stage; "mean peer" the mean of all whose name is peer
        and a number.
      stage: "" is the last one.
    """
    found = []
    for folder in self.folders(setting, run):
      stages = summary(folder)["stages"]
      result = stages[stage or list(stages)[-1]]
      kind = predictor.removeprefix("mean ")
      if kind == predictor:
        found.append(result["test"][predictor or result["predictor"]]["accuracy"])
      else:
        each = [s["accuracy"] for p, s in result["test"].items() if p.rpartition("_")[0] == kind]
        found.append(sum(each) / len(each))
    return found

  def exits(self, setting: str, run: str) -> list[list[float]]:
    """Return the test accuracies of every exit, shallowest first, seed by seed."""
    count = len(predictors(self.folders(setting, run)[0], "exit"))
    return [self.accuracies(setting, run, f"exit_{k}") for k in range(count)]

  def bundle(
    self, setting: str, run: str, seed: int, predictor: str = ""
  ) -> tuple[Network, dict[str, Any]]:
    """Return a trained network and its description; "" is the reported predictor."""
    return bundle(self.folder(setting, run, seed), predictor)

  def parts(self, setting: str, run: str, seed: int) -> tuple[data.Dataset, Phase]:
    """Return the data of a run and its last stage."""
    settings = self.settings(setting, run)
    settings.seed = seed
    found = build.dataset(settings, _load)
    return found, build.phases(settings, found, traced=False)[-1]


# Reading a data set takes seconds, and most runs share one.
_load = functools.lru_cache(maxsize=1)(data.load)


def summary(folder: pathlib.Path) -> dict[str, Any]:
  """Return the summary of a finished run."""
  return experiment.read_summary(folder)


def predictors(folder: pathlib.Path, kind: str) -> list[str]:
  """Return the predictors of a run's last stage whose name is `kind` and a number."""
  *_, last = summary(folder)["stages"].values()
  return [name for name in last["test"] if name.rpartition("_")[0] == kind]


def bundle(folder: pathlib.Path, predictor: str = "") -> tuple[Network, dict[str, Any]]:
  """Return a network of a finished run's last stage, and its description."""
  stages = summary(folder)["stages"]
  stage = list(stages)[-1]
  return bundles.load_bundle(folder / "bundles" / stage / (predictor or stages[stage]["predictor"]))
