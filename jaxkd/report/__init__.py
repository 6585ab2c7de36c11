"""What a run shows and leaves behind: console, metrics, curves, tables."""

from jaxkd import errors as _errors

with _errors.needed_by("jaxkd.report"):
  from jaxkd.report.bars import Bar, draw_bars
  from jaxkd.report.budget import anytime_table, budget_table, draw_budget_curves
  from jaxkd.report.comparisons import (
    Accuracies,
    best_rate,
    choice_table,
    comparison_table,
    run_accuracies,
    validated_stages,
  )
  from jaxkd.report.console import Lines, ProgressBar
  from jaxkd.report.curves import draw_curves
  from jaxkd.report.exit_curves import Curve, draw_exit_curves
  from jaxkd.report.files import MetricsFile, TensorBoard, write_atomically
  from jaxkd.report.histograms import draw_histograms
  from jaxkd.report.paired import Interval, mean_interval, paired_difference, verdict
  from jaxkd.report.table import closing_table, comparison

__all__ = [
  "Accuracies",
  "Bar",
  "Curve",
  "Interval",
  "Lines",
  "MetricsFile",
  "ProgressBar",
  "TensorBoard",
  "anytime_table",
  "best_rate",
  "budget_table",
  "choice_table",
  "closing_table",
  "comparison",
  "comparison_table",
  "draw_bars",
  "draw_budget_curves",
  "draw_curves",
  "draw_exit_curves",
  "draw_histograms",
  "mean_interval",
  "paired_difference",
  "run_accuracies",
  "validated_stages",
  "verdict",
  "write_atomically",
]
