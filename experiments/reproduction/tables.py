"""The claims' rows as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reproduction.results import POINTS, Claim, Row

Results = Sequence[tuple[Claim, Sequence[Row]]]
_VERDICTS = ("holds", "not shown", "contradicted")


def as_json(results: Results) -> list[dict[str, Any]]:
  """One flat object for each row."""
  return [
    {
      "number": claim.number,
      "claim": claim.sentence,
      "source": claim.source,
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
  """A Markdown table of how many rows of each claim came out how."""
  lines = [f"| | claim | source | {' | '.join(_VERDICTS)} |", f"|{'---|' * (3 + len(_VERDICTS))}"]
  everything = [row.verdict for _, rows in results for row in rows]
  for claim, rows in results:
    verdicts = [row.verdict for row in rows]
    cells = [str(claim.number), claim.sentence, claim.source, *_counts(verdicts)]
    lines.append(f"| {' | '.join(cells)} |")
  lines.append(f"| | all {len(everything)} rows | | {' | '.join(_counts(everything))} |")
  return "\n".join(lines)


def as_markdown(results: Results, facts: Mapping[str, str]) -> str:
  """A table for each claim, and the facts of the run."""
  parts = []
  for claim, rows in results:
    parts.append(f"**{claim.number}. {claim.sentence}** ({claim.source})")
    parts.append(_table(rows))
    parts += [f"{row.compared}: {row.note}." for row in _noted(rows)]
  parts.append("\n".join(f"- {name}: {fact}" for name, fact in facts.items()))
  return "\n\n".join(parts)


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
  """The rows with a note, of several with the same one the first."""
  first: dict[str, Row] = {}
  for row in rows:
    if row.note:
      first.setdefault(row.note, row)
  return list(first.values())
