"""What a run shows and leaves behind: console, metrics, curves, table."""

from jaxkd.report.budget import anytime_table, budget_table, draw_budget_curves
from jaxkd.report.console import Bar, Lines
from jaxkd.report.curves import draw_curves
from jaxkd.report.files import MetricsFile, TensorBoard, write_atomically
from jaxkd.report.table import closing_table, comparison

__all__ = [
  "Bar",
  "Lines",
  "MetricsFile",
  "TensorBoard",
  "anytime_table",
  "budget_table",
  "closing_table",
  "comparison",
  "draw_budget_curves",
  "draw_curves",
  "write_atomically",
]
