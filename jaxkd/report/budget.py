"""Prediction under a budget, drawn and as tables."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure


def draw_budget_curves(
  path: pathlib.Path,
  anytime: Sequence[Mapping[str, Any]],
  budgeted: Sequence[Mapping[str, Any]],
  title: str,
  *,
  full: Mapping[str, Any] | None = None,
) -> None:
  """Draws accuracy over multiply-adds, and time over multiply-adds where it was measured.

  Args:
    path: the PNG to write.
    anytime: rows of `jaxkd.evaluate.anytime_curve`.
    budgeted: rows of `jaxkd.evaluate.budgeted_curve`, "milliseconds" (per 1000 images) added to
      each if there is a `full`.
    title: above all panels.
    full: {"milliseconds"} of the whole network, run at once.
  """
  timed = full is not None
  figure = Figure(figsize=(10 if timed else 6, 4), layout="constrained")
  accuracies, *others = figure.subplots(1, 1 + timed, squeeze=False)[0]
  exits = [row["multiply_adds"] / 1e6 for row in anytime]
  used = [row["multiply_adds"] / 1e6 for row in budgeted]
  accuracies.plot(exits, [100 * row["accuracy"] for row in anytime], "C0o--", label="exits")
  together = [100 * row["ensemble_accuracy"] for row in anytime]
  accuracies.plot(exits, together, "C1s--", label="ensembles of exits")
  reached = [100 * row["accuracy"] for row in budgeted]
  accuracies.plot(used, reached, "C2.-", label="budgeted")
  accuracies.set(xlabel="million multiply-adds per image", ylabel="test accuracy, %")
  accuracies.legend(loc="lower right")
  if full is not None:
    (times,) = others
    times.plot(used, [row["milliseconds"] for row in budgeted], "C2.-", label="early exit")
    times.axhline(full["milliseconds"], color="C3", linestyle="--", label="whole network at once")
    times.set(xlabel="million multiply-adds per image", ylabel="ms per 1000 images", ylim=(0, None))
    times.legend(loc="lower right")
  figure.suptitle(title)
  figure.savefig(path, dpi=120)


def anytime_table(rows: Sequence[Mapping[str, Any]]) -> str:
  """A Markdown table of the exits, from rows of `jaxkd.evaluate.anytime_curve`."""
  return _table(
    ["exit", "million multiply-adds", "accuracy, %", "ensemble of exits so far, %"],
    [
      [
        str(row["exit"]),
        _millions(row["multiply_adds"]),
        _percent(row["accuracy"]),
        _percent(row["ensemble_accuracy"]),
      ]
      for row in rows
    ],
  )


def budget_table(rows: Sequence[Mapping[str, Any]], full: Mapping[str, Any]) -> str:
  """A Markdown table of the budgets, and the whole network under them.

  Args:
    rows: of `jaxkd.evaluate.budgeted_curve`, with "milliseconds" (per 1000 images) in each.
    full: {"multiply_adds", "accuracy", "milliseconds"}.
  """
  heads = ["budget, million multiply-adds", "used", "accuracy, %", "ms per 1000 images"]
  cells = [
    [
      _millions(row["budget"]),
      _millions(row["multiply_adds"]),
      _percent(row["accuracy"]),
      f"{row['milliseconds']:.1f}",
      ", ".join(f"{share:.0%}" for share in row["shares"]),
    ]
    for row in rows
  ]
  last = [
    "whole network at once",
    _millions(full["multiply_adds"]),
    _percent(full["accuracy"]),
    f"{full['milliseconds']:.1f}",
    "",
  ]
  return _table([*heads, "leave at each exit"], [*cells, last])


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [heads, ["---"] * len(heads), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _millions(value: float) -> str:
  return f"{value / 1e6:.3g}"


def _percent(value: float) -> str:
  return f"{100 * value:.2f}"
