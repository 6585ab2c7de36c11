"""The choice of hyperparameters by the validation split."""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jaxkd import report
from jaxkd.experiment import run as experiment

# (setting, run) -> changes -> validation accuracy of each seed, 0..1
Tried = Mapping[tuple[str, str], Mapping[str, Sequence[float]]]


def validated(
  candidates: Mapping[tuple[str, str], Mapping[str, Sequence[pathlib.Path]]],
) -> Tried:
  """Return the validation accuracies of finished runs, of their reported predictors."""
  return {
    key: {
      changes: [_validation(folder) for folder in folders] for changes, folders in tried.items()
    }
    for key, tried in candidates.items()
  }


def best(tried: Mapping[str, Sequence[float]]) -> str:
  """Return the changes with the highest mean accuracy, the first of equals."""
  return max(tried, key=lambda changes: statistics.mean(tried[changes]))


def as_json(tried: Tried) -> str:
  """Return setting -> run -> changes -> accuracies, as JSON."""
  settings: dict[str, dict[str, object]] = {}
  for (setting, run), accuracies in tried.items():
    settings.setdefault(setting, {})[run] = accuracies
  return json.dumps(settings, indent=2) + "\n"


def as_markdown(tried: Tried) -> str:
  """Return a table with a row per run: candidates with accuracies, the best one in bold."""
  lines = ["| setting | run | validation accuracy, % |", "|---|---|---|"]
  for (setting, run), accuracies in tried.items():
    chosen = best(accuracies)
    cells = []
    for changes, values in accuracies.items():
      text = f"{changes.replace('/', ', ')}: {100 * statistics.mean(values):.2f}"
      cells.append(f"**{text}**" if changes == chosen else text)
    lines.append(f"| {setting} | {run} | {'; '.join(cells)} |")
  return "\n".join(lines)


def every_predictor(
  candidates: Mapping[tuple[str, str], Mapping[str, Sequence[pathlib.Path]]],
) -> str:
  """Return a table with a row per run and change: validation accuracies of all predictors."""
  lines = [
    "| setting | run | beside what was chosen | validation accuracy, % |",
    "|---|---|---|---|",
  ]
  for (setting, run), tried in candidates.items():
    for changes, folders in tried.items():
      of_seeds = [
        report.run_accuracies(run, _scored(folder), every_predictor=True) for folder in folders
      ]
      cells = []
      for predictor in of_seeds[0]:
        values = [100 * accuracies[predictor] for accuracies in of_seeds]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        label = predictor.removeprefix(run).removeprefix(": ")
        label = f"{label} " if label else ""
        cells.append(f"{label}{statistics.mean(values):.2f}{spread}")
      changed = changes.replace("/", ", ") or "as chosen"
      lines.append(f"| {setting} | {run} | {changed} | {'; '.join(cells)} |")
  return "\n".join(lines)


def _validation(folder: pathlib.Path) -> float:
  (accuracy,) = report.run_accuracies("", _scored(folder)).values()
  return accuracy


def _scored(folder: pathlib.Path) -> Any:
  stages = experiment.read_summary(folder)["stages"]
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return report.validated_stages(stages, map(json.loads, lines))
