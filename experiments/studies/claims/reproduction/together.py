"""Claims about networks that are trained together without a teacher."""

from __future__ import annotations

from reproduction.costs import costs
from reproduction.results import DIGITS, Claim, Row, Runs, exact, paired, predictors


def _born_again(runs: Runs) -> list[Row]:
  def of(generation: int, predictor: str = "student") -> list[float]:
    stage = f"generation_{generation}" if generation else "alone"
    return runs.accuracies(DIGITS, "born_again", predictor, stage=stage)

  return [
    paired("generation 1 - labels alone", of(1), of(0)),
    paired("generation 2 - generation 1", of(2), of(1)),
    paired("generation 3 - generation 1", of(3), of(1)),
    paired("ensemble of all four - generation 3", of(3, "ensemble"), of(3)),
    paired("ensemble of all four - labels alone", of(3, "ensemble"), of(0)),
  ]


def _mutual(runs: Runs) -> list[Row]:
  alone = runs.accuracies(DIGITS, "alone")
  return [
    paired(
      "mean of two equal peers - one alone", runs.accuracies(DIGITS, "dml", "mean peer"), alone
    ),
    paired(
      "small peer of unequal two - it alone",
      runs.accuracies(DIGITS, "dml_unequal", "peer_0"),
      alone,
    ),
    paired(
      "large peer of unequal two - it alone",
      runs.accuracies(DIGITS, "dml_unequal", "peer_1"),
      runs.accuracies(DIGITS, "large"),
    ),
  ]


def _native_ensemble(runs: Runs) -> list[Row]:
  alone = runs.accuracies(DIGITS, "alone")
  branches = len(predictors(runs.folders(DIGITS, "one")[0], "branch"))
  _, single = costs(runs, DIGITS, "alone")
  _, together = costs(runs, DIGITS, "one", "ensemble")
  share = 100 * (1 - together / (branches * single))
  return [
    paired("mean branch - one alone", runs.accuracies(DIGITS, "one", "mean branch"), alone),
    paired("gated ensemble - one alone", runs.accuracies(DIGITS, "one", "ensemble"), alone),
    exact(
      f"multiply-adds that the ensemble saves of {branches} networks'",
      share,
      unit="%",
      note=f"{together:,} of {branches * single:,} for an image",
    ),
  ]


def _own_teacher(runs: Runs) -> list[Row]:
  alone = runs.accuracies(DIGITS, "alone")
  exits = runs.exits(DIGITS, "byot")
  rows = []
  for k, accuracies in enumerate(exits):
    deepest = ", the deepest" if k == len(exits) - 1 else ""
    rows.append(paired(f"exit {k}{deepest} - the plain network", accuracies, alone))
  ensemble = runs.accuracies(DIGITS, "byot", "ensemble")
  return [*rows, paired("ensemble - the plain network", ensemble, alone)]


CLAIMS = (
  Claim(
    8,
    "Born-again generations are at least as good as the first one, that as the same network from "
    "labels alone, and the ensemble is better still.",
    "Furlanello et al., 2018",
    (DIGITS,),
    _born_again,
  ),
  Claim(
    9,
    "Peers that teach each other are better than independent ones, equal or not.",
    "Zhang et al., 2018 (DML)",
    (DIGITS,),
    _mutual,
  ),
  Claim(
    10,
    "ONE's branches and their ensemble are better than the single network, and cost less than as "
    "many networks.",
    "Lan et al., 2018",
    (DIGITS,),
    _native_ensemble,
  ),
  Claim(
    11,
    "Every exit of a network that is its own teacher, the deepest too, is better than the plain "
    "network.",
    "Zhang et al., 2019 (BYOT)",
    (DIGITS,),
    _own_teacher,
  ),
)
