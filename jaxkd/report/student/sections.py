"""The sections of a student's report, as tables that Markdown and HTML share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

# Number of classes whose gap is shown, and of confused pairs.
SHOWN_CLASSES = 15
_PAIRS = 10

# Quantity -> (heading, format, factor of the number shown).
_QUANTITIES: dict[str, tuple[str, str, float]] = {
  "top1": ("top-1, %", ".2f", 100),
  "top5": ("top-5, %", ".2f", 100),
  "nll": ("NLL, nats", ".4f", 1),
  "brier": ("Brier", ".4f", 1),
  "ece": ("ECE", ".4f", 1),
  "ece_debiased": ("ECE, debiased", ".4f", 1),
  "selective_80%": ("accuracy at 80% coverage, %", ".2f", 100),
  "agreement": ("agreement, %", ".2f", 100),
  "kl": ("KL(teacher, student), nats", ".4f", 1),
  "agreement_where_wrong": ("agreement where the teacher is wrong, %", ".2f", 100),
}


@dataclasses.dataclass(frozen=True)
class StudentReport:
  """A report and the arrays of its pictures.

  Attributes:
    tree: `jaxkd.evaluate.report`, with "data", "bundles", "costs", "early_exit", "cka" and "main".
    images: (n, H, W, C) uint8, of `tree["worst"][main]`; None for inputs that are no images.
    maps: "student" and "teacher" -> (stage, attention maps (n, H, W)) of these images.
  """

  tree: Mapping[str, Any]
  images: np.ndarray | None = None
  maps: Mapping[str, tuple[str, np.ndarray]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of a report.

  Attributes:
    title: its heading.
    text: a sentence or two on what the numbers are.
    head: headings of its table.
    rows: cells of its table.
    figure: name of its picture, "" for none.
  """

  title: str
  text: str
  head: Sequence[str] = ()
  rows: Sequence[Sequence[str]] = ()
  figure: str = ""


def sections(tree: Mapping[str, Any]) -> list[Section]:
  """Return the sections of a report that have content."""
  made: list[Callable[[Mapping[str, Any]], Section | None]] = [
    _scores,
    _differences,
    _fidelity,
    _calibration,
    _classes,
    _confusion,
    _worst,
    _maps,
    _cka,
    _costs,
    _exits,
    _budgets,
  ]
  return [found for make in made if (found := make(tree)) is not None]


def shown(value: float | None, form: str = ".2f", factor: float = 1) -> str:
  """Return a number as text, a dash for one that does not exist."""
  return "-" if value is None else f"{factor * value:{form}}"


def largest_gaps(tree: Mapping[str, Any], other: str) -> list[Mapping[str, Any]]:
  """Return the classes of the main predictor with the largest gaps, the worst first."""
  rows = [row for row in tree["predictors"][tree["main"]]["per_class"] if row.get(other)]
  return sorted(rows, key=lambda row: row[other]["value"])[:SHOWN_CLASSES]


def _everyone(tree: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
  others = {name: tree[name] for name in ("teacher", "baseline") if tree[name] is not None}
  return {**tree["predictors"], **others}


def _scores(tree: Mapping[str, Any]) -> Section:
  everyone = _everyone(tree)
  known = [q for q in _QUANTITIES if q in next(iter(everyone.values()))["scores"]]
  rows = [
    [name, *(shown(entry["scores"][q], *_QUANTITIES[q][1:]) for q in known)]
    for name, entry in everyone.items()
  ]
  text = (
    f"{tree['images']:,} test images of {tree['data']}, {len(tree['classes'])} classes. "
    "ECE: 15 bins of equal mass."
  )
  return Section("Scores", text, ["network", *(_QUANTITIES[q][0] for q in known)], rows)


def _differences(tree: Mapping[str, Any]) -> Section | None:
  rows = [
    [name, other, _QUANTITIES[quantity][0], _interval(gap, *_QUANTITIES[quantity][1:])]
    for name, entry in tree["predictors"].items()
    for other, gaps in entry["differences"].items()
    for quantity, gap in gaps.items()
  ]
  if not rows:
    return None
  text = f"Predictor minus the other network, with {tree['level']:.0%} intervals over images."
  return Section(
    "Differences", f"{text} Paired bootstrap.", ["network", "minus", "quantity", "value"], rows
  )


def _interval(gap: Mapping[str, Any], form: str, factor: float) -> str:
  value, low, high = (shown(gap[key], f"+{form}", factor) for key in ("value", "low", "high"))
  return value if gap["low"] is None else f"{value} [{low}, {high}]"


def _fidelity(tree: Mapping[str, Any]) -> Section | None:
  found = {n: e["fidelity"] for n, e in tree["predictors"].items() if e["fidelity"]}
  if not found:
    return None
  known = ("agreement", "kl", "agreement_where_wrong")
  rows = [
    [name, *(shown(entry[q], *_QUANTITIES[q][1:]) for q in known), str(entry["teacher_errors"])]
    for name, entry in found.items()
  ]
  head = ["network", *(_QUANTITIES[q][0] for q in known), "errors of the teacher"]
  text = (
    "Agreement is the share of equal predictions. Where the teacher is wrong, it shows what was "
    "transferred besides the labels; the difference to a student trained alone is above."
  )
  return Section("Fidelity to the teacher", text, head, rows)


def _calibration(tree: Mapping[str, Any]) -> Section:
  rows = [
    [
      name,
      shown(found["value"], ".4f"),
      shown(found["nll"], ".4f"),
      shown(found["ece"], ".4f"),
      shown(found["ece_debiased"], ".4f"),
    ]
    for name, entry in tree["predictors"].items()
    if (found := entry["temperature"]) is not None
  ]
  text = "Reliability by confidence, and accuracy over the share of images that is predicted."
  head = ["network", "temperature", "NLL with it", "ECE with it", "debiased"] if rows else []
  if rows:
    text += " The temperature is fitted to the validation split."
  return Section("Calibration", text, head, rows, "calibration")


def _classes(tree: Mapping[str, Any]) -> Section | None:
  others = [name for name in ("teacher", "baseline") if tree[name] is not None]
  if not others:
    return None
  head = ["class", "images", "accuracy, %"]
  for other in others:
    head += [f"{other}, %", f"minus {other}, points"]
  rows = []
  for row in largest_gaps(tree, others[0]):
    cells = [row["class"], str(row["images"]), shown(row["accuracy"], factor=100)]
    for other in others:
      cells += [shown(row[other]["accuracy"], factor=100), _interval(row[other], ".2f", 100)]
    rows.append(cells)
  text = f"{tree['main']}: the {len(rows)} largest gaps to the {others[0]}, the worst first."
  return Section("Classes", text, head, rows, "classes")


def _confusion(tree: Mapping[str, Any]) -> Section | None:
  counts = np.array(tree["predictors"][tree["main"]]["confusion"])
  np.fill_diagonal(counts, 0)
  order = np.argsort(-counts, axis=None, kind="stable")[:_PAIRS]
  pairs = [divmod(int(cell), len(counts)) for cell in order]
  names = tree["classes"]
  rows = [[names[y], names[p], str(counts[y, p])] for y, p in pairs if counts[y, p]]
  if not rows:
    return None
  text = f"{tree['main']}: the most frequent errors."
  return Section("Confusion", text, ["class", "predicted", "images"], rows, "confusion")


def _worst(tree: Mapping[str, Any]) -> Section | None:
  rows = tree["worst"].get(tree["main"], [])
  if not rows:
    return None
  names = tree["classes"]

  def likely(row: Mapping[str, Any], side: str) -> str:
    best = int(np.argmax(row[side]))
    return f"{names[row['classes'][best]]} {row[side][best]:.1%}"

  cells = [
    [
      str(row["image"]),
      names[row["label"]],
      likely(row, "teacher"),
      likely(row, "student"),
      shown(row["kl"], ".3f"),
    ]
    for row in rows
  ]
  head = ["test image", "class", "teacher", "student", "KL, nats"]
  text = f"{tree['main']}: the images with the largest KL(teacher, student)."
  return Section("Worst disagreements", text, head, cells, "worst")


def _maps(tree: Mapping[str, Any]) -> Section | None:
  if not tree["worst"].get(tree["main"]):
    return None
  text = (
    "The mean over channels of the squared activations, of unit norm, for the images above "
    "(Zagoruyko and Komodakis, ICLR 2017)."
  )
  return Section("Attention maps", text, figure="maps")


def _cka(tree: Mapping[str, Any]) -> Section | None:
  found = tree["cka"]
  if found is None:
    return None
  rows = [
    [stage, *(shown(value) for value in values)]
    for stage, values in zip(found["student"], found["values"], strict=True)
  ]
  text = (
    f"Linear CKA, debiased, of the first {found['examples']} test examples; a row is a stage of "
    "the student, a column one of the teacher."
  )
  return Section("Similarity of features", text, ["", *found["teacher"]], rows, "cka")


def _costs(tree: Mapping[str, Any]) -> Section:
  rows = []
  head = ["network", "parameters", "bytes", "multiply-adds"]
  found = tree["costs"]
  batches = sorted({row["batch"] for entry in found.values() for row in entry["batches"]})
  for batch in batches:
    head += [f"activations, kB, batch {batch}", f"ms, batch {batch}", "quartiles"]
  for name, entry in found.items():
    adds = entry["multiply_adds"]
    cells = [name, f"{entry['parameters']:,}", f"{entry['bytes']:,}"]
    cells.append("-" if adds is None else f"{adds:,}")
    measured = {row["batch"]: row for row in entry["batches"]}
    for batch in batches:
      row = measured.get(batch)
      cells += _measured(row) if row else ["-"] * 3
    rows.append(cells)
  device = next(iter(found.values()))["device"]
  text = f"The exported function on {device}, medians of single calls."
  return Section("Costs", text, head, rows)


def _measured(row: Mapping[str, Any]) -> list[str]:
  memory = row["activation_bytes"]
  spread = f"{row['low']:.3f} to {row['high']:.3f}"
  return [shown(memory, ".1f", 1e-3), f"{row['milliseconds']:.3f}", spread]


def _exits(tree: Mapping[str, Any]) -> Section | None:
  if tree["early_exit"] is None:
    return None
  rows = [
    [
      str(row["exit"]),
      f"{row['multiply_adds']:,}",
      shown(row["accuracy"], factor=100),
      shown(row["ensemble_accuracy"], factor=100),
    ]
    for row in tree["early_exit"]["anytime"]
  ]
  head = ["exit", "multiply-adds", "accuracy, %", "with the exits before, %"]
  return Section("Exits", "Accuracy and cost of each exit.", head, rows)


def _budgets(tree: Mapping[str, Any]) -> Section | None:
  if tree["early_exit"] is None or not tree["early_exit"]["budgets"]:
    return None
  rows = [
    [
      f"{row['budget']:,.0f}",
      f"{row['multiply_adds']:,.0f}",
      shown(row["accuracy"], factor=100),
      ", ".join(f"{float(t):.4g}" for t in row["thresholds"]),
    ]
    for row in tree["early_exit"]["budgets"]
  ]
  head = ["budget", "multiply-adds", "accuracy, %", "thresholds"]
  text = (
    "Thresholds of the logarithm of the confidence, fitted to the validation split for each "
    "budget of multiply-adds; `jaxkd.evaluate.EarlyExit` takes them."
  )
  return Section("Early exit", text, head, rows)
