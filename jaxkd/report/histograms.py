"""Histograms of several samples over each other."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from jaxkd.errors import ConfigError
from jaxkd.report.palette import line_styles

_BINS = 40


def draw_histograms(
  path: pathlib.Path, panels: Mapping[str, Mapping[str, np.ndarray]], title: str
) -> None:
  """Draws a panel for every quantity: how often each of its values occurs in each sample.

  The samples of a panel share their bins, and each is drawn as shares of its own size. A thin line
  marks its mean, which the legend tells.

  Args:
    path: the PNG to write.
    panels: what is counted -> label -> values (N,), N may differ.
    title: above all panels.

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
