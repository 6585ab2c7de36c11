"""Horizontal bars with their intervals: differences, or means of accuracy."""

from __future__ import annotations

import math
import pathlib
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from jaxkd.errors import ConfigError
from jaxkd.report.palette import ABOVE, AROUND, BELOW

# Characters of a line of a label; longer ones go on below.
_LINE = 44
_LINE_INCHES = 0.15
_COLORS = {"interval above 0": ABOVE, "interval around 0": AROUND, "interval below 0": BELOW}


class Bar(NamedTuple):
  """One row of a panel.

  Attributes:
    label: beside it.
    value: how far it reaches.
    low: the lower end of its interval, at most `value`.
    high: the upper end, at least `value`.
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
  """Draws a panel of bars for every group, one below the other, on one axis, in the order given.

  A bar's colour says on which side of 0 its interval lies; the legend names the colours where there
  are several. The figure grows with the bars.

  Args:
    path: the PNG to write.
    groups: the panel's title, "" for none -> its bars, from top to bottom.
    xlabel: what the values are, with their unit.
    title: above all panels.
    from_zero: False draws dots in place of bars, which need not start at 0: for accuracies that
      differ by little.

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
    patches = [Patch(color=color, label=kind) for kind, color in _COLORS.items() if kind in kinds]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches))
  figure.suptitle(title)
  figure.savefig(path, dpi=120)


def _draw_panel(
  axes: Axes, bars: Sequence[Bar], labels: Mapping[str, str], from_zero: bool
) -> None:
  places = range(len(bars))
  values = [bar.value for bar in bars]
  colors = [_COLORS[_kind(bar)] for bar in bars]
  reach = [[bar.value - bar.low for bar in bars], [bar.high - bar.value for bar in bars]]
  if from_zero:
    axes.barh(places, values, height=0.7, color=colors, alpha=0.75)
    axes.axvline(0, color="black", linewidth=0.8)
  else:
    axes.scatter(values, places, color=colors, zorder=3)
    axes.grid(axis="x", alpha=0.3)
  axes.errorbar(values, places, xerr=reach, fmt="none", ecolor="black", capsize=3, linewidth=1)
  axes.set_yticks(places, [labels[bar.label] for bar in bars], fontsize="small")
  # The first on top.
  axes.set_ylim(len(bars) - 0.4, -0.6)


def _kinds(bars: Iterable[Bar]) -> set[str]:
  return {_kind(bar) for bar in bars}


def _kind(bar: Bar) -> str:
  if bar.low > 0:
    return "interval above 0"
  return "interval below 0" if bar.high < 0 else "interval around 0"
