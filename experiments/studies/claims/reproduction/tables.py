"""The claims' rows as JSON and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from reproduction.results import POINTS, Claim, Row, Runs, summary

Results = Sequence[tuple[Claim, Sequence[Row]]]
_VERDICTS = ("holds", "not shown", "contradicted")


def as_json(results: Results) -> list[dict[str, Any]]:
  """Return one flat object per row."""
  return [
    {
      "number": claim.number,
      "claim": claim.sentence,
      "source": claim.source,
      "settings": list(claim.settings),
      "compared": row.compared,
      "difference": row.difference,
      "interval": [row.low, row.high],
      "unit": row.unit,
      "seeds": row.seeds,
      "verdict": row.verdict,
      "note": row.note,
    }
    for claim, rows in results
    for row in rows
  ]


def overview(results: Results) -> str:
  """Return a Markdown table: the number of rows of each claim by verdict."""
  lines = [f"| | claim | source | {' | '.join(_VERDICTS)} |", f"|{'---|' * (3 + len(_VERDICTS))}"]
  everything = [row.verdict for _, rows in results for row in rows]
  for claim, rows in results:
    verdicts = [row.verdict for row in rows]
    cells = [str(claim.number), claim.sentence, claim.source, *_counts(verdicts)]
    lines.append(f"| {' | '.join(cells)} |")
  lines.append(f"| | all {len(everything)} rows | | {' | '.join(_counts(everything))} |")
  return "\n".join(lines)


def as_markdown(results: Results, runs: Runs, facts: Mapping[str, str]) -> str:
  """Return a table per claim, the accuracies behind them, and the facts of the runs."""
  parts = ["\n".join(f"- {name}: {fact}" for name, fact in facts.items())]
  for claim, rows in results:
    tried = f"; on {' and '.join(claim.settings)}" if claim.settings else ""
    parts.append(f"**{claim.number}. {claim.sentence}** ({claim.source}{tried})")
    parts.append(_table(rows))
    parts += [f"{row.compared}: {row.note}." for row in _noted(rows)]
  parts += ["**Test accuracies of all runs**, in %, mean ± standard deviation:", _accuracies(runs)]
  return "\n\n".join(parts)


def _accuracies(runs: Runs) -> str:
  """Return a row per run, with the accuracy of its reported predictor."""
  lines = ["| setting | run | test accuracy | trained as |", "|---|---|---|---|"]
  teacher = summary(runs.teacher)["stages"]["teacher"]["accuracy"]
  lines.append(f"| {next(iter(runs.seeds))} | teacher | {100 * teacher:.2f} | teacher |")
  for setting in runs.seeds:
    for run, variant in runs.constants.RUNS[setting].items():
      percent = [100 * x for x in runs.accuracies(setting, run)]
      shown = f"{statistics.mean(percent):.2f} ± {statistics.stdev(percent):.2f}"
      changes = f"{variant}/{runs.constants.CHOSEN[setting][run]}".replace("/", ", ")
      lines.append(f"| {setting} | {run} | {shown} | {changes} |")
  return "\n".join(lines)


def _table(rows: Sequence[Row]) -> str:
  lines = ["| compared | difference | 95% interval | seeds | verdict |", "|---|---|---|---|---|"]
  for row in rows:
    unit = "" if row.unit == POINTS else f" {row.unit}"
    interval = f"{_number(row.low, row)} to {_number(row.high, row)}" if row.seeds else "exact"
    cells = [row.compared, f"{_number(row.difference, row)}{unit}", interval, row.seeds or ""]
    lines.append(f"| {' | '.join(map(str, cells))} | {row.verdict} |")
  return "\n".join(lines)


def _counts(verdicts: Sequence[str]) -> list[str]:
  return [str(verdicts.count(verdict)) for verdict in _VERDICTS]


def _number(value: float, row: Row) -> str:
  if row.unit == POINTS or row.unit.startswith("%"):
    return f"{value:+.2f}"
  return f"{value:+.3g}" if abs(value) < 0.01 else f"{value:+.3f}"


def _noted(rows: Sequence[Row]) -> list[Row]:
  """Return the rows with a note, the first of those with the same note."""
  first: dict[str, Row] = {}
  for row in rows:
    if row.note:
      first.setdefault(row.note, row)
  return list(first.values())
