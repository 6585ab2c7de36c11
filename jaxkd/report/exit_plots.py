"""Figures and tables of networks with exits: accuracy by budget and by exit."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from jaxkd.errors import ConfigError
from jaxkd.report.plots import line_styles
from jaxkd.report.stats import mean_interval

# (costs or numbers of the exits; for every run, the accuracies at them).
Curve = tuple[Sequence[float], Sequence[Sequence[float]]]


def draw_budget_curves(
  path: pathlib.Path,
  anytime: Sequence[Mapping[str, Any]],
  budgeted: Sequence[Mapping[str, Any]],
  title: str,
  *,
  full: Mapping[str, Any] | None = None,
) -> None:
  """Draw accuracy over multiply-adds and, if measured, time over multiply-adds.

  Args:
    path: the PNG to write.
    anytime: rows of `jaxkd.evaluate.anytime_curve`.
    budgeted: rows of `jaxkd.evaluate.budgeted_curve`, each with "milliseconds" (per 1000 images) if
      `full` is given.
    title: title above all panels.
    full: {"milliseconds"} of the whole network without early exits, or None.
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
  """Return a Markdown table of the exits, from rows of `jaxkd.evaluate.anytime_curve`."""
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
  """Return a Markdown table of the budgets, with the whole network in the last row.

  Args:
    rows: rows of `jaxkd.evaluate.budgeted_curve`, each with "milliseconds" (per 1000 images).
    full: {"multiply_adds", "accuracy", "milliseconds"} of the whole network.
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


def draw_exit_curves(
  path: pathlib.Path,
  panels: Mapping[str, Mapping[str, Curve]],
  title: str,
  *,
  xlabel: str = "multiply-adds per image",
) -> None:
  """Draw the mean accuracy of several runs by exit and, from two runs on, its 95% interval.

  Args:
    path: the PNG to write.
    panels: the panel's title -> label -> (costs or numbers of the exits; for every run the
      accuracies there, 0..1).
    title: title above all panels.
    xlabel: label of the axis of costs.

  Raises:
    ConfigError: for no panels or curves, or a run with more or fewer accuracies than costs.
  """
  if not panels or not all(panels.values()):
    raise ConfigError(f"panels: expected one or more with curves each, got {dict(panels)!r}")
  figure = Figure(figsize=(1 + 4.5 * len(panels), 4), layout="constrained")
  styles = line_styles(panels.values())
  all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
  for axes, (panel, curves) in zip(all_axes, panels.items(), strict=True):
    for label, (costs, runs) in curves.items():
      _check(panel, label, costs, runs)
      percent = 100 * np.asarray(runs, np.float64)
      axes.plot(costs, percent.mean(axis=0), marker="o", markersize=4, label=label, **styles[label])
      if len(percent) > 1:
        ends = [mean_interval(column.tolist()) for column in percent.T]
        low, high = [end.low for end in ends], [end.high for end in ends]
        axes.fill_between(costs, low, high, color=styles[label]["color"], alpha=0.15, linewidth=0)
    axes.set(title=panel, xlabel=xlabel, ylabel="test accuracy, %")
    # Suits both numbers of exits (0, 1, 2) and large counts (500 k, 1 M).
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.legend(loc="lower right")
  figure.suptitle(title)
  figure.savefig(path, dpi=120)


def _check(panel: str, label: str, costs: Sequence[float], runs: Sequence[Sequence[float]]) -> None:
  if not len(runs) or any(len(run) != len(costs) for run in runs):
    raise ConfigError(
      f"panels[{panel!r}][{label!r}]: {len(costs)} costs, and runs of "
      f"{[len(run) for run in runs]} accuracies: expected one run or more, of as many each"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [heads, ["---"] * len(heads), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _millions(value: float) -> str:
  return f"{value / 1e6:.3g}"


def _percent(value: float) -> str:
  return f"{100 * value:.2f}"
