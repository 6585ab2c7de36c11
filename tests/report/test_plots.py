"""Bars, histograms and exit curves: the drawn values, read back from the figure."""

import itertools
import pathlib

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from jaxkd.errors import ConfigError
from jaxkd.report import Bar, draw_bars, draw_exit_curves, draw_histograms, mean_interval

PATH = pathlib.Path("unwritten.png")


@pytest.fixture
def drawn(monkeypatch):
  """The figures passed to savefig; nothing is rendered."""
  figures = []
  monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: figures.append(self))
  return figures


def labels_of(axes):
  return [text.get_text() for text in axes.get_yticklabels()]


BARS = [Bar("kd", 3, 1, 4), Bar("at", 1, -1, 3), Bar("ab", -2, -3, -1)]


def test_bars_and_intervals_have_the_given_values_and_order(drawn):
  draw_bars(PATH, {"offline": BARS, "online": BARS[:1]}, xlabel="points", title="claims")
  [figure] = drawn
  offline, online = figure.axes
  assert [axes.get_title("left") for axes in figure.axes] == ["offline", "online"]
  assert online.get_xlabel() == "points"
  assert figure.get_suptitle() == "claims"
  assert labels_of(offline) == ["kd", "at", "ab"]
  assert [(bar.get_x(), bar.get_width()) for bar in offline.patches] == [(0, 3), (0, 1), (0, -2)]
  [intervals] = offline.collections
  ends = [segment[:, 0].tolist() for segment in intervals.get_segments()]
  assert ends == [[1, 4], [-1, 3], [-3, -1]]
  # Bars run from top to bottom, each beside its label; both panels have one axis.
  heights = offline.transData.transform([(0, place) for place in offline.get_yticks()])[:, 1]
  assert list(heights) == sorted(heights, reverse=True)
  for bar, place in zip(offline.patches, offline.get_yticks(), strict=True):
    assert bar.get_y() + bar.get_height() / 2 == pytest.approx(place)
  assert offline.get_xlim() == online.get_xlim()
  # Three colours: intervals above 0, around it and below it.
  colors = [to_hex(bar.get_facecolor()) for bar in offline.patches]
  assert len(set(colors)) == 3
  [legend] = figure.legends
  named = [
    (to_hex(patch.get_facecolor()), text.get_text())
    for patch, text in zip(legend.get_patches(), legend.get_texts(), strict=True)
  ]
  words = ["interval above 0", "interval around 0", "interval below 0"]
  assert named == list(zip(colors, words, strict=True))


def test_axis_of_dots_need_not_start_at_0(drawn):
  bars = [Bar("alone", 78, 77, 79), Bar("kd", 83, 82.5, 83.5)]
  draw_bars(PATH, {"": bars}, xlabel="%", title="", from_zero=False)
  [axes] = drawn[0].axes
  assert axes.get_xlim()[0] > 70
  assert not axes.patches
  assert axes.collections[0].get_offsets().tolist() == [[78, 0], [83, 1]]
  assert not drawn[0].legends


def test_forty_long_labels_do_not_overlap_or_leave_the_figure(drawn):
  """The table of claims has as many rows."""
  rows = [
    Bar(f"{n}. the student with the reused classifier minus the student alone, exit {n}", 1, 0, 2)
    for n in range(39)
  ]
  draw_bars(PATH, {"many": rows, "one": rows[:1]}, xlabel="points", title="claims")
  [figure] = drawn
  figure.draw_without_rendering()
  boxes = [
    text.get_window_extent()
    for axes in figure.axes
    for text in [*axes.get_yticklabels(), axes.xaxis.label]
    if text.get_text()
  ]
  for upper, lower in itertools.pairwise(boxes):
    assert lower.y1 < upper.y0
  assert min(box.x0 for box in boxes) >= 0
  assert min(axes.get_window_extent().width for axes in figure.axes) > figure.bbox.width / 2


def test_figures_are_written_as_png(tmp_path):
  bars, histograms, curves = (tmp_path / f"{name}.png" for name in "abc")
  draw_bars(bars, {"": BARS}, xlabel="points", title="claims")
  draw_histograms(histograms, {"cosine": {"kd": np.arange(3)}}, "distances")
  draw_exit_curves(curves, {"": {"kd": ([0, 1], [[0.5, 0.6]])}}, "exits", xlabel="exit")
  for path in (bars, histograms, curves):
    assert path.read_bytes().startswith(b"\x89PNG")


def test_histograms_have_common_bins_and_sum_to_100_percent(drawn):
  rng = np.random.default_rng(0)
  near, far = rng.uniform(0, 1, 50), rng.uniform(0.5, 3, 200)
  draw_histograms(PATH, {"cosine": {"simkd": near, "kd": far}, "l2": {"kd": far}}, "distances")
  first, second = drawn[0].axes
  assert (first.get_xlabel(), second.get_xlabel()) == ("cosine", "l2")
  simkd, kd = (patch.get_data() for patch in first.patches)
  np.testing.assert_array_equal(simkd.edges, kd.edges)
  assert simkd.edges[0] == near.min()
  assert simkd.edges[-1] == far.max()
  for data, sample in ((simkd, near), (kd, far)):
    assert data.values.sum() == pytest.approx(100)
    half = len(data.edges) // 2
    below = data.values[:half].sum() / 100
    assert below == pytest.approx(np.mean(sample < data.edges[half]))
  legend = [text.get_text() for text in first.get_legend().get_texts()]
  assert legend == [f"simkd: mean {near.mean():.3g}", f"kd: mean {far.mean():.3g}"]
  assert first.lines[1].get_xdata()[0] == far.mean()
  # A label has the same style in all panels.
  assert first.patches[1].get_edgecolor() == second.patches[0].get_edgecolor()
  assert first.patches[0].get_edgecolor() != first.patches[1].get_edgecolor()


def test_exit_curves_are_means_over_runs_with_an_interval(drawn):
  runs = [[0.5, 0.75], [0.625, 0.75], [0.75, 0.875]]
  curves = {"distilled": ([1e6, 3e6], runs), "plain": ([2e6], [[0.5]])}
  draw_exit_curves(PATH, {"10 per class": curves, "100": {"plain": curves["plain"]}}, "exits")
  axes, other = drawn[0].axes
  assert (axes.get_title(), axes.get_xlabel()) == ("10 per class", "multiply-adds per image")
  distilled, plain = axes.lines
  np.testing.assert_allclose(distilled.get_xydata(), [[1e6, 62.5], [3e6, 100 * 2.375 / 3]])
  np.testing.assert_allclose(plain.get_xydata(), [[2e6, 50]])
  # One run has no band.
  [band] = axes.collections
  corners = {tuple(corner) for corner in band.get_paths()[0].vertices.round(6)}
  for cost, values in ((1e6, [50, 62.5, 75]), (3e6, [75, 75, 87.5])):
    found = mean_interval(values)
    assert {(cost, round(found.low, 6)), (cost, round(found.high, 6))} <= corners
  assert plain.get_color() == other.lines[0].get_color() != distilled.get_color()


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: draw_bars(PATH, {}, xlabel="", title=""), "^groups: expected one or more"),
    (lambda: draw_bars(PATH, {"a": []}, xlabel="", title=""), "^groups: expected one or more"),
    (
      lambda: draw_bars(PATH, {"a": [Bar("kd", 3, 4, 5)]}, xlabel="", title=""),
      r"^groups\['a'\], 'kd': expected finite low <= value <= high, got 4, 3, 5",
    ),
    (lambda: draw_bars(PATH, {"a": [Bar("kd", 0, -np.inf, 1)]}, xlabel="", title=""), "finite"),
    (lambda: draw_histograms(PATH, {"cosine": {}}, ""), "^panels: expected one or more"),
    (lambda: draw_histograms(PATH, {"cosine": {"kd": np.ones((2, 1))}}, ""), r"shape \(2, 1\)"),
    (lambda: draw_histograms(PATH, {"cosine": {"kd": np.array([])}}, ""), r"'cosine'\]\['kd'\]"),
    (lambda: draw_exit_curves(PATH, {}, ""), "^panels: expected one or more"),
    (lambda: draw_exit_curves(PATH, {"a": {"kd": ([1, 2], [])}}, ""), r"'a'\]\['kd'\]: 2 costs"),
    (lambda: draw_exit_curves(PATH, {"a": {"kd": ([1, 2], [[0.5]])}}, ""), r"runs of \[1\]"),
  ],
)
def test_errors_name_values_that_cannot_be_drawn(call, message):
  with pytest.raises(ConfigError, match=message):
    call()
