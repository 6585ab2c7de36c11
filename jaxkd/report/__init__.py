"""What a run shows and leaves behind: console, metrics, curves, tables."""

from jaxkd.report.budget import anytime_table, budget_table, draw_budget_curves
from jaxkd.report.comparisons import (
  Accuracies,
  best_rate,
  choice_table,
  comparison_table,
  run_accuracies,
)
from jaxkd.report.console import Bar, Lines
from jaxkd.report.curves import draw_curves
from jaxkd.report.files import MetricsFile, TensorBoard, write_atomically
from jaxkd.report.table import closing_table, comparison

__all__ = [
  "Accuracies",
  "Bar",
  "Lines",
  "MetricsFile",
  "TensorBoard",
  "anytime_table",
  "best_rate",
  "budget_table",
  "choice_table",
  "closing_table",
  "comparison",
  "comparison_table",
  "draw_budget_curves",
  "draw_curves",
  "run_accuracies",
  "write_atomically",
]
