"""Comparison of runs over seeds: tables of means, paired differences, confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jaxkd.errors import ConfigError, needed_by

# Row of a table -> its accuracy for every seed.
Accuracies = dict[str, list[float]]
# Learning rate -> accuracy of the run with that rate for every seed.
ByRate = Mapping[float, Sequence[float]]
Verdict = Literal["holds", "not shown", "contradicted"]


class Interval(NamedTuple):
  """A mean over runs, or over differences of paired runs, and its confidence interval.

  Attributes:
    mean: mean of the values or differences.
    low: lower end of the interval.
    high: upper end of the interval.
    seeds: number of runs or pairs.
  """

  mean: float
  low: float
  high: float
  seeds: int


def run_accuracies(
  name: str, stages: Mapping[str, Mapping[str, Any]], *, every_predictor: bool = False
) -> dict[str, float]:
  """Return the rows of a table that come from one run: row -> accuracy.

  Args:
    name: name of the run.
    stages: stage -> {"predictor": its reported predictor, "test": {predictor: {"accuracy"}}}, as in
      a run's summary; or with validation scores as "test". No stages give no rows, and neither
      does a last stage that is not scored.
    every_predictor: True returns a row for every predictor of every stage, and one for the mean of
      several of a kind; False returns one row, for the predictor of the last stage.

  >>> test = {"peer_0": {"accuracy": 0.5}, "peer_1": {"accuracy": 0.75}}
  >>> stages = {"distilled": {"predictor": "peer_0", "test": test}}
  >>> run_accuracies("dml", stages)
  {'dml': 0.5}
  >>> run_accuracies("dml", stages, every_predictor=True)
  {'dml: peer_0': 0.5, 'dml: peer_1': 0.75, 'dml: mean peer': 0.625}
  >>> run_accuracies("teacher", {"teacher": {"predictor": ""}})
  {}
  >>> student = {"predictor": "student", "test": {"student": {"accuracy": 0.75}}}
  >>> run_accuracies("kd", {"teacher": student, "distilled": student}, every_predictor=True)
  {'kd': 0.75}
  """
  if not stages:
    return {}
  *_, last = stages
  # Teachers have rows of their own, from runs of their own.
  own = {s: result for s, result in stages.items() if s == last or not s.startswith("teacher")}
  if not own[last]["predictor"]:
    return {}
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
  """Return a run's stages with their last validation scores as "test"; skip those without scores.

  Args:
    stages: stages of its summary.
    rows: rows of its metrics.jsonl.

  >>> row = {"stage": "alone", "validation": {"student": {"accuracy": 0.5}}}
  >>> validated_stages({"alone": {"predictor": "student"}}, [row])["alone"]["test"]
  {'student': {'accuracy': 0.5}}
  """
  last = {row["stage"]: row.get("validation") for row in rows}
  return {s: {**result, "test": last[s]} for s, result in stages.items() if last.get(s)}


def comparison_table(
  accuracies: Accuracies, validations: Accuracies, *, against: str = "alone"
) -> str:
  """Return a Markdown table: test accuracy, gain over another run, share of the gap closed.

  Gains are paired by seed, over the same predictor of the other run, or over its only row. The
  share is that of the teacher's mean gap to the student alone. It is left out if there are several
  teachers, which are called "teacher,..." or "FILE.py:teacher".

  Args:
    accuracies: accuracies on the test split.
    validations: accuracies on the validation split, of rows that have them.
    against: name of the run that is subtracted.
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
  """Return a Markdown table of validation accuracies: a row per student, a column per rate."""
  rates = list(next(iter(validations.values())))
  heads = ["student", *(f"rate {rate:g}" for rate in rates), "best"]
  lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
  for name, runs in validations.items():
    cells = [name.replace("/", ", "), *(_spread(runs[rate]) for rate in rates)]
    lines.append(f"| {' | '.join(cells)} | {best_rate(runs):g} |")
  return "\n".join(lines)


def best_rate(runs: ByRate) -> float:
  """Return the rate with the highest mean accuracy, the first of several.

  >>> best_rate({0.1: [0.5, 0.6], 0.4: [0.4, 0.9]})
  0.4
  """
  return max(runs, key=lambda rate: statistics.mean(runs[rate]))


def paired_difference(
  ours: Sequence[float], theirs: Sequence[float], level: float = 0.95
) -> Interval:
  """Compute the mean of ours - theirs, paired by seed, and its interval by Student's t.

  With d the n differences and s their sample standard deviation (divisor n - 1), the interval is
  mean(d) -+ t s / sqrt(n), where t is the quantile (1 + level) / 2 of Student's distribution with
  n - 1 degrees of freedom. It is exact for normal differences. An effect of a seed that is the same
  in both runs cancels. Equal differences give an interval of length 0.

  Args:
    ours: one number per seed.
    theirs: one number per seed, in the same order.
    level: level of confidence, between 0 and 1.

  Raises:
    ConfigError: for fewer than two seeds, different numbers of seeds, values that are not finite,
      or a level out of range.

  Source: Student, "The Probable Error of a Mean", Biometrika 1908.

  >>> paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).mean
  2.0
  """
  if len(ours) != len(theirs):
    raise ConfigError(f"theirs: {len(theirs)} values, expected {len(ours)}, as many as ours")
  _check("ours", ours)
  _check("theirs", theirs)
  pairs = zip(ours, theirs, strict=True)
  return mean_interval([float(a) - float(b) for a, b in pairs], level)


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
  """Compute the mean and its interval by Student's t, as in `paired_difference`.

  Args:
    values: one number per seed.
    level: level of confidence, between 0 and 1.

  Raises:
    ConfigError: for fewer than two values, some that are not finite, or a level out of range.

  >>> mean_interval([0.1, 0.1, 0.1])
  Interval(mean=0.1, low=0.1, high=0.1, seeds=3)
  """
  _check("values", values)
  if not 0 < level < 1:
    raise ConfigError(f"level={level:g}: expected a number between 0 and 1")
  # Imported here because it takes as long as the rest of this package.
  with needed_by("jaxkd.report"):
    from scipy.special import stdtrit

  # Exact arithmetic: equal numbers have deviation 0, and their mean is the number itself.
  numbers = [float(value) for value in values]
  mean, spread = statistics.mean(numbers), statistics.stdev(numbers)
  count = len(numbers)
  reach = float(stdtrit(count - 1, (1 + level) / 2)) * spread / math.sqrt(count)
  return Interval(mean, mean - reach, mean + reach, count)


def verdict(low: float, high: float) -> Verdict:
  """Judge the claim that a difference is positive by its confidence interval alone.

  Args:
    low: lower end of the interval.
    high: upper end of the interval.

  Returns:
    "holds" if the whole interval lies above 0, "contradicted" if it lies below 0, or else
    "not shown".

  Raises:
    ConfigError: if low is above high, or one is not a number.

  >>> verdict(0.1, 0.3), verdict(-0.1, 0.3), verdict(0.0, 0.0), verdict(-0.3, -0.1)
  ('holds', 'not shown', 'not shown', 'contradicted')
  """
  if not low <= high:
    raise ConfigError(f"low={low:g}, high={high:g}: expected low <= high")
  if low > 0:
    return "holds"
  return "contradicted" if high < 0 else "not shown"


def _is_teacher(name: str) -> bool:
  return name.rpartition(".py:")[2].split(",")[0] == "teacher"


def _spread(values: Sequence[float], sign: str = "") -> str:
  """Format mean and sample standard deviation, in percent."""
  mean = f"{100 * statistics.mean(values):{sign}.2f}"
  return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def _check(argument: str, values: Sequence[float]) -> None:
  if len(values) < 2:
    raise ConfigError(f"{argument}: an interval needs at least two seeds, got {len(values)}")
  if not all(math.isfinite(value) for value in values):
    raise ConfigError(f"{argument}: expected finite numbers, got {list(values)!r}")
