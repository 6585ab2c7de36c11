"""Choosing hyperparameters by the validation split."""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence

from jaxkd import report

# (setting, run) -> changes -> validation accuracy of each seed, 0..1
Tried = Mapping[tuple[str, str], Mapping[str, Sequence[float]]]


def validated(
  candidates: Mapping[tuple[str, str], Mapping[str, Sequence[pathlib.Path]]],
) -> Tried:
  """The validation accuracies of finished runs, by what stands for each."""
  return {
    key: {
      changes: [_validation(folder) for folder in folders] for changes, folders in tried.items()
    }
    for key, tried in candidates.items()
  }


def best(tried: Mapping[str, Sequence[float]]) -> str:
  """The changes with the highest mean accuracy; of several, the first."""
  return max(tried, key=lambda changes: statistics.mean(tried[changes]))


def as_json(tried: Tried) -> str:
  """Setting -> run -> changes -> accuracies."""
  settings: dict[str, dict[str, object]] = {}
  for (setting, run), accuracies in tried.items():
    settings.setdefault(setting, {})[run] = accuracies
  return json.dumps(settings, indent=2) + "\n"


def as_markdown(tried: Tried) -> str:
  """A row for each run: its candidates with their accuracies, the best one in bold."""
  lines = ["| setting | run | validation accuracy, % |", "|---|---|---|"]
  for (setting, run), accuracies in tried.items():
    chosen = best(accuracies)
    cells = []
    for changes, values in accuracies.items():
      text = f"{changes.replace('/', ', ')}: {100 * statistics.mean(values):.2f}"
      cells.append(f"**{text}**" if changes == chosen else text)
    lines.append(f"| {setting} | {run} | {'; '.join(cells)} |")
  return "\n".join(lines)


def _validation(folder: pathlib.Path) -> float:
  stages = json.loads((folder / "summary.json").read_text())["stages"]
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  scored = report.validated_stages(stages, map(json.loads, lines))
  (accuracy,) = report.run_accuracies("", scored).values()
  return accuracy
