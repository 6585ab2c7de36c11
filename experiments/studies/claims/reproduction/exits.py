"""Claims about networks with several exits, and about prediction under a budget."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np

from jaxkd import data, evaluate, models
from reproduction.results import FASHION, Claim, Row, Runs, paired

# The network that predicts under a budget.
_BUDGETED = "exits_100"
# Budgets between two exits, as fractions of the way from one cost to the next.
_BETWEEN = 0.5


def _by_size(runs: Runs) -> list[Row]:
  rows, gains = [], {}
  for size in runs.constants.SIZES:
    distilled = runs.exits(FASHION, f"exits_{size}")
    labels = runs.exits(FASHION, f"exit_wise_{size}")
    gains[size] = [np.subtract(a, b) for a, b in zip(distilled, labels, strict=True)]
    for k, (ours, theirs) in enumerate(zip(distilled, labels, strict=True)):
      last = ", the last" if k == len(labels) - 1 else ""
      rows.append(
        paired(f"exit {k}{last}, {size} images per class: distilled - labels alone", ours, theirs)
      )
  few, many = min(gains), max(gains)
  for k, (before, after) in enumerate(zip(gains[few], gains[many], strict=True)):
    if k < len(gains[few]) - 1:
      rows.append(
        paired(
          f"exit {k}: what distillation gains at {few} - at {many} images per class",
          list(before),
          list(after),
        )
      )
  return rows


def _temperature(runs: Runs) -> list[Row]:
  adaptive = runs.exits(FASHION, "exits_100")
  constant = runs.exits(FASHION, "exits_constant")
  settings = runs.settings(FASHION, "exits_constant")
  against = f"constant (T={settings.method.temperature:g})"
  early = [np.mean(x[:-1], axis=0).tolist() for x in (adaptive, constant)]
  return [
    paired(f"mean of the early exits: adaptive - {against}", *early),
    paired(f"last exit: adaptive - {against}", adaptive[-1], constant[-1]),
  ]


@dataclasses.dataclass(frozen=True)
class Budgets:
  """One network's prediction under budgets.

  Attributes:
    costs: multiply-adds up to each exit.
    anytime: test accuracy of each exit when all images leave there.
    budgeted: rows of `jaxkd.evaluate.budgeted_curve`, at budgets between the exits' costs.
  """

  costs: tuple[int, ...]
  anytime: list[float]
  budgeted: list[Any]


@functools.cache
def budgets(runs: Runs) -> list[Budgets]:
  """Return the `Budgets` of every seed's network; thresholds are fitted to the validation split."""
  return [_budgets(runs, seed) for seed in runs.seeds[FASHION]]


def _budgets(runs: Runs, seed: int) -> Budgets:
  parts, stage = runs.parts(FASHION, _BUDGETED, seed)
  ensemble, _ = runs.bundle(FASHION, _BUDGETED, seed, "ensemble")
  model, variables = models.exits_inside(ensemble)

  def logits(examples: data.Examples) -> tuple[np.ndarray, np.ndarray]:
    batches = data.evaluation_batches(examples, batch_size=250)
    return evaluate.exit_logits(model, variables, batches, stage.prepare_evaluation)

  assert parts.validation is not None
  costs = evaluate.exit_costs(model, variables, parts.image_shape)
  fitted_to, _ = logits(parts.validation)
  tested, truth = logits(parts.test)
  asked = [a + _BETWEEN * (b - a) for a, b in itertools.pairwise(costs)]
  return Budgets(
    costs,
    [row["accuracy"] for row in evaluate.anytime_curve(tested, truth, costs)],
    evaluate.budgeted_curve(fitted_to, tested, truth, costs, asked),
  )


def _curves(runs: Runs) -> list[Row]:
  found = budgets(runs)
  exits, rows = len(found[0].costs), []
  for k in range(exits - 1):
    rows.append(
      paired(
        f"anytime: exit {k + 1} - exit {k}",
        [one.anytime[k + 1] for one in found],
        [one.anytime[k] for one in found],
      )
    )
  for k in range(exits - 1):
    asked = found[0].budgeted[k]["budget"]
    used = [one.budgeted[k]["multiply_adds"] for one in found]
    rows.append(
      paired(
        f"budget of {asked / 1e6:.3g}M multiply-adds: budgeted - anytime at the cost used",
        [one.budgeted[k]["accuracy"] for one in found],
        [
          evaluate.anytime_at(one.costs, one.anytime, cost)
          for one, cost in zip(found, used, strict=True)
        ],
        note=f"it used {np.mean(used) / 1e6:.3g}M; anytime between exits mixes the two",
      )
    )
  first, last = ([one.budgeted[k]["accuracy"] for one in found] for k in (0, -1))
  rows.append(paired("budgeted: largest budget - smallest", last, first))
  return rows


CLAIMS = (
  Claim(
    12,
    "With few images per class, early exits learn more from the last one than from labels alone; "
    "with more images the gap shrinks.",
    "Phuong and Lampert, 2019",
    (FASHION,),
    _by_size,
  ),
  Claim(
    13,
    "A temperature that adapts is better than a constant one.",
    "Phuong and Lampert, 2019",
    (FASHION,),
    _temperature,
  ),
  Claim(
    14,
    "Accuracy rises with the budget, and deciding for each image when to stop is better than "
    "stopping all at the same cost.",
    "Huang et al., 2018 (MSDNet)",
    (FASHION,),
    _curves,
  ),
)
