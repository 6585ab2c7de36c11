"""The closing table: teacher, student alone, distilled student, and the gap between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def comparison(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
  """What distillation gained, in test accuracy.

  Args:
    stages: stage name -> {"accuracy": ...}, in order; those called teacher and alone count, and
      the last, which trained the distilled student.

  Returns:
    "difference": distilled minus alone; "gap_closed": that, as a share of teacher minus alone
    (left out where no teacher was scored, or none is better than the student alone). Empty
    without both students.

  >>> rows = {"teacher": {"accuracy": 0.9}, "alone": {"accuracy": 0.5},
  ...         "distilled": {"accuracy": 0.7}}
  >>> {name: round(value, 3) for name, value in comparison(rows).items()}
  {'difference': 0.2, 'gap_closed': 0.5}
  """
  *_, last = stages
  if "alone" not in stages or last in ("teacher", "alone"):
    return {}
  alone, distilled = stages["alone"]["accuracy"], stages[last]["accuracy"]
  figures = {"difference": distilled - alone}
  gap = stages.get("teacher", {}).get("accuracy", alone) - alone
  if gap > 0:
    figures["gap_closed"] = (distilled - alone) / gap
  return figures


def closing_table(summary: Mapping[str, Any]) -> Table:
  """The table that ends a run, from its summary."""
  method, data, seed = (summary["config"][k] for k in ("method", "data", "seed"))
  table = Table(title=f"{method['name']} on {data['name']}, seed {seed}: test accuracy")
  for heading, justify in (("network", "left"), ("model", "left"), ("parameters", "right")):
    table.add_column(heading, justify=justify)  # type: ignore[arg-type]
  table.add_column("accuracy", justify="right")
  for name, row in summary["stages"].items():
    label = {"alone": "student alone", "distilled": f"student, {method['name']}"}.get(name, name)
    if row["predictor"]:
      table.add_row(label, row["model"], f"{row['parameters']:,}", f"{row['accuracy']:.2%}")
    else:
      # Nothing was scored after such a stage; how far its objective went is all there is to say.
      reached = f"loss {row['train']['loss']:.4g}" if "train" in row else "not scored"
      table.add_row(label, row["model"], "", reached)
  gain = summary["comparison"]
  if gain:
    table.add_section()
    table.add_row("distilled - alone", "", "", f"{100 * gain['difference']:+.2f} points")
    closed = f"{gain['gap_closed']:.0%}" if "gap_closed" in gain else "no gap"
    if "teacher" in summary["stages"]:
      table.add_row("share of gap closed", "", "", closed)
  return table
