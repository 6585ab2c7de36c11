"""Figures of the claims: bars with intervals, curves of exits, histograms of feature distances."""

from __future__ import annotations

import pathlib
import textwrap

import numpy as np

from jaxkd import report
from reproduction import exits, features
from reproduction.results import FASHION, POINTS, Runs
from reproduction.tables import Results

# Panels of bars that fit one page.
_PARTS = {"offline": range(2, 8), "together": range(8, 16)}


def draw_all(directory: pathlib.Path, results: Results, runs: Runs) -> None:
  """Write claims_*.png."""
  for part, numbers in _PARTS.items():
    groups = {
      f"{claim.number}. {textwrap.shorten(claim.source, 60, placeholder=' ...')}": [
        report.Bar(row.compared, row.difference, row.low, row.high)
        for row in rows
        if row.unit == POINTS
      ]
      for claim, rows in results
      if claim.number in numbers
    }
    report.draw_bars(
      directory / f"claims_{part}.png",
      {title: bars for title, bars in groups.items() if bars},
      xlabel="difference of test accuracies, points",
      title="Differences that are claimed to be positive, with 95% intervals",
    )
  report.draw_exit_curves(
    directory / "claims_exits.png",
    _by_size(runs),
    "Exits taught by the last one and by labels alone, with 95% intervals",
    xlabel="exit",
  )
  report.draw_exit_curves(
    directory / "claims_budget.png",
    _budgets(runs),
    "Prediction under a budget, with 95% intervals",
  )
  kd = runs.constants.KD
  distances = {
    f"KD (T={kd.removeprefix('kd_t')}), mapped": features.distances(runs, kd, fitted=True),
    "SimKD": features.distances(runs, "simkd"),
  }
  report.draw_histograms(
    directory / "claims_features.png",
    {
      quantity: {
        label: np.concatenate([one[kind] for one in each]) for label, each in distances.items()
      }
      for kind, quantity in (("cosine", "1 - cosine"), ("l2", "distance / length of the teacher's"))
    },
    "From student's to teacher's pooled features of the test images",
  )


def _by_size(runs: Runs) -> dict[str, dict[str, report.Curve]]:
  panels = {}
  for size in runs.constants.SIZES:
    curves = {}
    for label, run in (("distilled", f"exits_{size}"), ("labels alone", f"exit_wise_{size}")):
      accuracies = runs.exits(FASHION, run)
      curves[label] = (range(len(accuracies)), np.transpose(accuracies).tolist())
    panels[f"{size} images per class"] = curves
  return panels


def _budgets(runs: Runs) -> dict[str, dict[str, report.Curve]]:
  found = exits.budgets(runs)
  used = np.mean([[row["multiply_adds"] for row in one.budgeted] for one in found], axis=0)
  return {
    "": {
      "anytime: all leave at one exit": (found[0].costs, [one.anytime for one in found]),
      "budgeted: each leaves when sure": (
        used.tolist(),
        [[row["accuracy"] for row in one.budgeted] for one in found],
      ),
    }
  }
