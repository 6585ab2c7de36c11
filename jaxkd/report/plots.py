"""Figures of runs: bars, training curves, histograms."""

from __future__ import annotations

import itertools
import math
import pathlib
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from jaxkd.errors import ConfigError, writing
from jaxkd.train.reporting import Row

# The colours of Okabe and Ito without yellow and black.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", ":", "-.")
# Colours of bars, by the position of their interval.
_KIND_COLORS = {
  "interval above 0": _COLORS[0],
  "interval around 0": "#8C8C8C",
  "interval below 0": _COLORS[1],
}
# Labels of bars are wrapped after this many characters; a line of a label has this height.
_LINE = 44
_LINE_INCHES = 0.15
# Number of bins of a histogram.
_BINS = 40


def line_styles(panels: Iterable[Iterable[str]]) -> dict[str, dict[str, Any]]:
  """Assign a style to every label of a figure, the same in all panels.

  Args:
    panels: the labels of each panel.

  Returns:
    Label -> {"color", "linestyle"}, arguments of matplotlib. When all colours are used, they repeat
    with other dashes.

  >>> line_styles([["kd", "simkd"], ["simkd"]])["simkd"]
  {'color': '#D55E00', 'linestyle': '-'}
  """
  labels = dict.fromkeys(itertools.chain.from_iterable(panels))
  styles = itertools.cycle((color, dash) for dash in _DASHES for color in _COLORS)
  return {
    label: {"color": color, "linestyle": dash}
    for label, (color, dash) in zip(labels, styles, strict=False)
  }


class Bar(NamedTuple):
  """One row of a panel.

  Attributes:
    label: text beside the bar.
    value: end of the bar, which starts at 0.
    low: lower end of its interval, at most `value`.
    high: upper end of its interval, at least `value`.
  """

  label: str
  value: float
  low: float
  high: float


def draw_bars(
  path: pathlib.Path,
  groups: Mapping[str, Sequence[Bar]],
  *,
  xlabel: str,
  title: str,
  from_zero: bool = True,
) -> None:
  """Draw the figure of `bars_figure` to a PNG file."""
  figure = bars_figure(groups, xlabel=xlabel, title=title, from_zero=from_zero)
  figure.savefig(path, dpi=120)


def bars_figure(
  groups: Mapping[str, Sequence[Bar]], *, xlabel: str, title: str, from_zero: bool = True
) -> Figure:
  """Draw a panel of horizontal bars for every group, in the order given, with a common axis.

  A bar's colour shows on which side of 0 its interval lies; a legend explains the colours if there
  are several. The height of the figure is proportional to the number of bars.

  Args:
    groups: the panel's title, "" for none -> its bars, from top to bottom.
    xlabel: label of the values, with their unit.
    title: title above all panels.
    from_zero: False draws dots instead of bars, on an axis that need not start at 0: for accuracies
      that differ by little.

  Raises:
    ConfigError: for a group without bars or no group, and for a value that is not finite or outside
      its interval.
  """
  if not groups or not all(groups.values()):
    raise ConfigError(f"groups: expected one or more with bars each, got {dict(groups)!r}")
  for group, bars in groups.items():
    for bar in bars:
      finite = math.isfinite(bar.low) and math.isfinite(bar.high)
      if not (finite and bar.low <= bar.value <= bar.high):
        where = f"groups[{group!r}], {bar.label!r}"
        raise ConfigError(
          f"{where}: expected finite low <= value <= high, got {bar.low}, {bar.value}, {bar.high}"
        )
  labels = {bar.label: textwrap.fill(bar.label, _LINE) for bars in groups.values() for bar in bars}
  row = _LINE_INCHES * (max(text.count("\n") for text in labels.values()) + 1) + 0.1
  counts = [len(bars) for bars in groups.values()]
  height = row * sum(counts) + 0.6 * len(groups) + 1.2
  figure = Figure(figsize=(8, height), layout="constrained")
  panels = figure.subplots(
    len(groups), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": counts}
  )[:, 0]
  for axes, (group, bars) in zip(panels, groups.items(), strict=True):
    _draw_panel(axes, bars, labels, from_zero)
    axes.set_title(group, loc="left", fontsize="medium")
  panels[-1].set_xlabel(xlabel)
  kinds = _kinds(bar for bars in groups.values() for bar in bars)
  if len(kinds) > 1:
    patches = [
      Patch(color=color, label=kind) for kind, color in _KIND_COLORS.items() if kind in kinds
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches))
  figure.suptitle(title)
  return figure


def _draw_panel(
  axes: Axes, bars: Sequence[Bar], labels: Mapping[str, str], from_zero: bool
) -> None:
  rows = range(len(bars))
  values = [bar.value for bar in bars]
  colors = [_KIND_COLORS[_kind(bar)] for bar in bars]
  reach = [[bar.value - bar.low for bar in bars], [bar.high - bar.value for bar in bars]]
  if from_zero:
    axes.barh(rows, values, height=0.7, color=colors, alpha=0.75)
    axes.axvline(0, color="black", linewidth=0.8)
  else:
    axes.scatter(values, rows, color=colors, zorder=3)
    axes.grid(axis="x", alpha=0.3)
  axes.errorbar(values, rows, xerr=reach, fmt="none", ecolor="black", capsize=3, linewidth=1)
  axes.set_yticks(rows, [labels[bar.label] for bar in bars], fontsize="small")
  # The axis points down: the first bar is on top.
  axes.set_ylim(len(bars) - 0.4, -0.6)


def _kinds(bars: Iterable[Bar]) -> set[str]:
  return {_kind(bar) for bar in bars}


def _kind(bar: Bar) -> str:
  if bar.low > 0:
    return "interval above 0"
  return "interval below 0" if bar.high < 0 else "interval around 0"


def draw_curves(
  path: pathlib.Path, rows: list[Row], stages: Mapping[str, Mapping[str, Any]], title: str
) -> None:
  """Draw training loss and validation accuracy over epochs, test accuracies as dashed lines.

  Args:
    path: the PNG to write.
    rows: rows of all stages.
    stages: stage name -> {"accuracy": test accuracy, "predictor": its reported predictor, "" for
      none}.
    title: title above both panels.
  """
  figure = Figure(figsize=(10, 4), layout="constrained")
  losses, accuracies = figure.subplots(1, 2)
  for number, (stage, result) in enumerate(stages.items()):
    color = f"C{number}"
    own = [row for row in rows if row["stage"] == stage]
    losses.plot([r["epoch"] for r in own], [r["train"]["loss"] for r in own], color, label=stage)
    if not result["predictor"]:
      continue
    scored = [r for r in own if "validation" in r]
    accuracies.plot(
      [r["epoch"] for r in scored],
      [100 * r["validation"][result["predictor"]]["accuracy"] for r in scored],
      color,
      label=f"{stage}: {result['accuracy']:.1%} on test",
    )
    accuracies.axhline(100 * result["accuracy"], color=color, linestyle="--", linewidth=0.8)
  losses.set(xlabel="epoch", ylabel="training loss", yscale="log")
  accuracies.set(xlabel="epoch", ylabel="validation accuracy, %")
  accuracies.legend(loc="lower right")
  losses.legend(loc="upper right")
  figure.suptitle(title)
  with writing(path):
    figure.savefig(path, dpi=120)


def draw_histograms(
  path: pathlib.Path, panels: Mapping[str, Mapping[str, np.ndarray]], title: str
) -> None:
  """Draw a panel for every quantity, with a histogram of each sample.

  The samples of a panel have the same bins, and heights are shares of a sample's size. A thin line
  marks the mean of a sample; the legend contains its value.

  Args:
    path: the PNG to write.
    panels: quantity -> label -> values (N,), where N may differ.
    title: title above all panels.

  Raises:
    ConfigError: for no panels, a panel or sample without values, or values that are not finite.
  """
  if not panels or not all(panels.values()):
    raise ConfigError(f"panels: expected one or more with samples each, got {dict(panels)!r}")
  figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
  styles = line_styles(panels.values())
  all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
  for axes, (quantity, given) in zip(all_axes, panels.items(), strict=True):
    samples = {label: _sample(quantity, label, values) for label, values in given.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(samples.values())), _BINS)
    for label, values in samples.items():
      shares = 100 * np.histogram(values, edges)[0] / len(values)
      mean, style = values.mean(), styles[label]
      axes.stairs(shares, edges, label=f"{label}: mean {mean:.3g}", linewidth=1.5, **style)
      axes.axvline(mean, linewidth=0.8, **style)
    axes.set(xlabel=quantity, ylabel="share, %", ylim=(0, None))
    axes.legend()
  figure.suptitle(title)
  figure.savefig(path, dpi=120)


def _sample(quantity: str, label: str, values: np.ndarray) -> np.ndarray:
  array = np.asarray(values, np.float64)
  if array.ndim != 1 or not array.size or not np.isfinite(array).all():
    raise ConfigError(
      f"panels[{quantity!r}][{label!r}]: expected (N,) finite values, at least one, got shape "
      f"{array.shape}"
    )
  return array
