"""Tables that compare runs over several seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Row of a table -> its accuracy in every seed.
Accuracies = dict[str, list[float]]
# Learning rate -> the same run's accuracy in every seed.
ByRate = Mapping[float, Sequence[float]]


def run_accuracies(
  name: str, stages: Mapping[str, Mapping[str, Any]], *, every_predictor: bool = False
) -> dict[str, float]:
  """The rows that one run gives a table: row -> accuracy.

  Args:
    name: what the run is called.
    stages: stage -> {"predictor": the one that stands for it, "test": {predictor: {"accuracy"}}},
      as in a run's summary; or with validation scores for "test". None gives no rows.
    every_predictor: a row for every predictor of every stage, and one for the mean of several of a
      kind; otherwise one row, for the predictor of the last stage.

  >>> test = {"peer_0": {"accuracy": 0.5}, "peer_1": {"accuracy": 0.75}}
  >>> stages = {"distilled": {"predictor": "peer_0", "test": test}}
  >>> run_accuracies("dml", stages)
  {'dml': 0.5}
  >>> run_accuracies("dml", stages, every_predictor=True)
  {'dml: peer_0': 0.5, 'dml: peer_1': 0.75, 'dml: mean peer': 0.625}
  >>> student = {"predictor": "student", "test": {"student": {"accuracy": 0.75}}}
  >>> run_accuracies("kd", {"teacher": student, "distilled": student}, every_predictor=True)
  {'kd': 0.75}
  """
  if not stages:
    return {}
  *_, last = stages
  # A run's teachers have a run, and a row, of their own.
  own = {s: result for s, result in stages.items() if s == last or not s.startswith("teacher")}
  if not every_predictor or len(own[last]["test"]) == 1 == len(own):
    return {name: own[last]["test"][own[last]["predictor"]]["accuracy"]}
  rows = {}
  for stage, result in own.items():
    if not result["predictor"]:
      continue
    prefix = name if stage == "distilled" or len(own) == 1 else f"{name}, {stage}"
    kinds: dict[str, list[float]] = {}
    for predictor, scores in result["test"].items():
      rows[f"{prefix}: {predictor}"] = scores["accuracy"]
      kinds.setdefault(predictor.rpartition("_")[0], []).append(scores["accuracy"])
    for kind, each in kinds.items():
      if kind and len(each) > 1:
        rows[f"{prefix}: mean {kind}"] = statistics.mean(each)
  return rows


def validated_stages(
  stages: Mapping[str, Mapping[str, Any]], rows: Iterable[Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
  """A run's stages with their last validation scores for "test", but for those that have none.

  Args:
    stages: of its summary.
    rows: of its metrics.jsonl.

  >>> row = {"stage": "alone", "validation": {"student": {"accuracy": 0.5}}}
  >>> validated_stages({"alone": {"predictor": "student"}}, [row])["alone"]["test"]
  {'student': {'accuracy': 0.5}}
  """
  last = {row["stage"]: row.get("validation") for row in rows}
  return {s: {**result, "test": last[s]} for s, result in stages.items() if last.get(s)}


def comparison_table(
  accuracies: Accuracies, validations: Accuracies, *, against: str = "alone"
) -> str:
  """A Markdown table: test accuracy, gain over another run, share of the gap closed.

  Gains are paired by seed. They are over the same predictor of the other run, or over its only row.
  The share, where there is one teacher, is of its mean gap to the student alone. Of several, which
  are called "teacher,..." or "FILE.py:teacher", none is the measure of all students.

  Args:
    accuracies: on the test split.
    validations: on the validation split, of rows that have any.
    against: the run that gains are counted from.
  """
  heads = "network", "test accuracy, %", f"minus {against}, points", "gap closed"
  lines = [f"| {' | '.join(heads)} | validation accuracy, % |", "|---|---|---|---|---|"]
  gap = 0.0
  teachers = [name for name in accuracies if _is_teacher(name)]
  if teachers == ["teacher"]:
    gap = statistics.mean(accuracies["teacher"]) - statistics.mean(accuracies["alone"])
  for name, values in accuracies.items():
    run, _, predictor = name.partition(": ")
    cells = [f"student, {name}", _spread(values), "", ""]
    if name in (*teachers, "alone"):
      cells[0] = {"alone": "student alone"}.get(name, name)
    basis = next(n for n in (f"{against}: {predictor}", against, name) if n in accuracies)
    if name not in (*teachers, basis) and run != against:
      gains = [a - b for a, b in zip(values, accuracies[basis], strict=True)]
      cells[2] = _spread(gains, "+")
      if against == "alone" and teachers == ["teacher"]:
        cells[3] = f"{statistics.mean(gains) / gap:.0%}" if gap > 0 else "no gap"
    cells.append(_spread(validations[name]) if name in validations else "")
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def choice_table(validations: Mapping[str, ByRate]) -> str:
  """A Markdown table of validation accuracies, a student a row, a learning rate a column."""
  rates = list(next(iter(validations.values())))
  heads = ["student", *(f"rate {rate:g}" for rate in rates), "best"]
  lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
  for name, runs in validations.items():
    cells = [name.replace("/", ", "), *(_spread(runs[rate]) for rate in rates)]
    lines.append(f"| {' | '.join(cells)} | {best_rate(runs):g} |")
  return "\n".join(lines)


def best_rate(runs: ByRate) -> float:
  """The rate of the highest mean accuracy; of several, the first.

  >>> best_rate({0.1: [0.5, 0.6], 0.4: [0.4, 0.9]})
  0.4
  """
  return max(runs, key=lambda rate: statistics.mean(runs[rate]))


def _is_teacher(name: str) -> bool:
  return name.rpartition(".py:")[2].split(",")[0] == "teacher"


def _spread(values: Sequence[float], sign: str = "") -> str:
  """Mean and sample standard deviation, in percent."""
  mean = f"{100 * statistics.mean(values):{sign}.2f}"
  return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean
