"""The pictures of a student's report."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxkd.errors import needed_by

with needed_by("jaxkd.report.student"):
  from matplotlib.figure import Figure

from jaxkd.report.plots import Bar, bars_figure, line_styles
from jaxkd.report.student.sections import StudentReport, largest_gaps

# Number of images with attention maps, and the largest number of classes of a confusion picture.
_MAPS = 6
_MATRIX = 30
_COLUMNS = 4


def figures(found: StudentReport) -> dict[str, tuple[bytes, str]]:
  """Return the pictures that a report has: name -> (PNG, description)."""
  made: dict[str, tuple[Callable[[StudentReport], Figure | None], str]] = {
    "calibration": (_calibration, "reliability curves, and accuracy over coverage"),
    "classes": (_classes, "difference in accuracy by class"),
    "confusion": (_confusion, "confusion matrix"),
    "worst": (_worst, "images with the largest disagreement, and both distributions"),
    "maps": (_maps, "attention maps of student and teacher"),
    "cka": (_cka, "CKA of every stage of the student with every stage of the teacher"),
  }
  pictures = {}
  for name, (make, description) in made.items():
    figure = make(found)
    if figure is not None:
      pictures[name] = _png(figure), description
  return pictures


def _png(figure: Figure) -> bytes:
  file = io.BytesIO()
  # Without the date and version, equal figures are equal files.
  figure.savefig(file, dpi=100, format="png", metadata={"Software": None})
  return file.getvalue()


def _calibration(found: StudentReport) -> Figure:
  tree = found.tree
  everyone = dict(tree["predictors"])
  everyone |= {name: tree[name] for name in ("teacher", "baseline") if tree[name] is not None}
  figure = Figure(figsize=(9, 4), layout="constrained")
  reliability, selective = figure.subplots(1, 2)
  styles = line_styles([list(everyone)])
  reliability.plot([0, 1], [0, 1], color="#8C8C8C", linewidth=0.8)
  for name, entry in everyone.items():
    bins, curve = entry["reliability"], entry["selective"]
    reliability.plot(bins["confidence"], bins["accuracy"], marker=".", label=name, **styles[name])
    selective.plot(
      100 * np.array(curve["coverage"]),
      100 * np.array(curve["accuracy"]),
      marker=".",
      **styles[name],
    )
  reliability.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
  reliability.legend(loc="lower right")
  selective.set(xlabel="coverage, %", ylabel="accuracy, %")
  return figure


def _classes(found: StudentReport) -> Figure | None:
  groups = {}
  for other in ("teacher", "baseline"):
    if found.tree[other] is None:
      continue
    bars = []
    for row in largest_gaps(found.tree, other):
      gap = row[other]
      value, low, high = (
        100 * (gap["value"] if gap[key] is None else gap[key]) for key in ("value", "low", "high")
      )
      # A sample of few images may leave out the value itself.
      bars.append(Bar(row["class"], value, min(low, value), max(high, value)))
    if bars:
      groups[f"minus {other}"] = bars
  if not groups:
    return None
  title = f"{found.tree['main']}: the largest gaps by class"
  return bars_figure(groups, xlabel="difference in accuracy, points", title=title)


def _confusion(found: StudentReport) -> Figure | None:
  names = found.tree["classes"]
  if len(names) > _MATRIX:
    return None
  counts = np.array(found.tree["predictors"][found.tree["main"]]["confusion"], float)
  shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  side = 2.5 + 0.3 * len(names)
  figure = Figure(figsize=(side + 1, side), layout="constrained")
  axes = figure.subplots()
  picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
  axes.set_xticks(range(len(names)), names, rotation=90)
  axes.set_yticks(range(len(names)), names)
  axes.set(xlabel="predicted", ylabel="class")
  figure.colorbar(picture, ax=axes, label="share of the class, %")
  return figure


def _worst(found: StudentReport) -> Figure | None:
  if found.images is None:
    return None
  rows = found.tree["worst"][found.tree["main"]]
  names = found.tree["classes"]
  lines = -(-len(rows) // _COLUMNS)
  figure = Figure(figsize=(3 * _COLUMNS, 3.1 * lines), layout="constrained")
  for number, (row, image) in enumerate(zip(rows, found.images, strict=True)):
    line, column = divmod(number, _COLUMNS)
    picture = figure.add_subplot(2 * lines, _COLUMNS, 2 * line * _COLUMNS + column + 1)
    _show(picture, image)
    picture.set_title(f"image {row['image']}: {names[row['label']]}", fontsize="small")
    bars = figure.add_subplot(2 * lines, _COLUMNS, (2 * line + 1) * _COLUMNS + column + 1)
    places = np.arange(len(row["classes"]))
    bars.barh(places - 0.2, row["teacher"], 0.4, color="#0072B2", label="teacher")
    bars.barh(places + 0.2, row["student"], 0.4, color="#D55E00", label="student")
    bars.set_yticks(places, [names[number] for number in row["classes"]], fontsize="x-small")
    bars.set_xlim(0, 1)
    bars.invert_yaxis()
    if not number:
      bars.legend(fontsize="x-small", loc="lower right")
  return figure


def _maps(found: StudentReport) -> Figure | None:
  if found.images is None or not found.maps:
    return None
  count = min(_MAPS, len(found.images))
  figure = Figure(figsize=(1.7 * count + 0.6, 1.9 * (1 + len(found.maps))), layout="constrained")
  panels = figure.subplots(1 + len(found.maps), count, squeeze=False)
  for column in range(count):
    _show(panels[0, column], found.images[column])
    for line, (_, maps) in enumerate(found.maps.values(), start=1):
      panels[line, column].imshow(maps[column], cmap="viridis")
      panels[line, column].set(xticks=[], yticks=[])
  panels[0, 0].set_ylabel("image")
  for line, (name, (stage, _)) in enumerate(found.maps.items(), start=1):
    panels[line, 0].set_ylabel(f"{name}\n{stage}")
  return figure


def _cka(found: StudentReport) -> Figure | None:
  cka: Mapping[str, Any] | None = found.tree["cka"]
  if cka is None:
    return None
  values = np.array([[np.nan if v is None else v for v in row] for row in cka["values"]])
  figure = Figure(
    figsize=(3 + 0.7 * len(cka["teacher"]), 2 + 0.5 * len(cka["student"])), layout="constrained"
  )
  axes = figure.subplots()
  picture = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
  axes.set_xticks(range(len(cka["teacher"])), cka["teacher"], rotation=30)
  axes.set_yticks(range(len(cka["student"])), cka["student"])
  axes.set(xlabel="teacher", ylabel="student")
  figure.colorbar(picture, ax=axes, label="CKA")
  return figure


def _show(axes: Any, image: np.ndarray) -> None:
  gray = image.shape[-1] != 3
  # Images of other numbers of channels are shown by their mean.
  axes.imshow(image.mean(axis=-1) if gray else image, cmap="gray" if gray else None)
  axes.set(xticks=[], yticks=[])
