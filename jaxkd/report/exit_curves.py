"""Accuracy over exits, or over what they cost, of several methods and over several runs."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from jaxkd.errors import ConfigError
from jaxkd.report.paired import mean_interval
from jaxkd.report.palette import line_styles

# Costs, or numbers, of the exits; the accuracies at them, run by run.
Curve = tuple[Sequence[float], Sequence[Sequence[float]]]


def draw_exit_curves(
  path: pathlib.Path,
  panels: Mapping[str, Mapping[str, Curve]],
  title: str,
  *,
  xlabel: str = "multiply-adds per image",
) -> None:
  """Draws the mean accuracy of the runs and, from two runs on, its 95% interval as a band.

  Args:
    path: the PNG to write.
    panels: the panel's title -> label -> (what exits cost, or their numbers; for every run the
      accuracies there, 0..1).
    title: above all panels.
    xlabel: what the costs are.

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
    # Both exits' numbers and large counts read well so: 0, 1, 2 and 500 k, 1 M.
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
