"""Output of runs: console, metrics files, plots, tables and statistics."""

from jaxkd import errors as _errors

with _errors.needed_by("jaxkd.report"):
  from jaxkd.report.console import (
    Lines,
    ProgressBar,
    closing_table,
    comparison,
    phases_by_role,
  )
  from jaxkd.report.exit_plots import (
    Curve,
    anytime_table,
    budget_table,
    draw_budget_curves,
    draw_exit_curves,
  )
  from jaxkd.report.files import MetricsFile, TensorBoard, write_atomically
  from jaxkd.report.mlflow_runs import MLflow
  from jaxkd.report.plots import Bar, bars_figure, draw_bars, draw_curves, draw_histograms
  from jaxkd.report.stats import (
    Accuracies,
    Interval,
    best_rate,
    choice_table,
    comparison_table,
    mean_interval,
    paired_difference,
    run_accuracies,
    validated_stages,
    verdict,
  )
  from jaxkd.report.student import StudentReport, student_tables, write_index, write_student_report
  from jaxkd.report.trackers import TRACKERS, Tracker, trackers
  from jaxkd.report.trackio_runs import Trackio
  from jaxkd.report.wandb_runs import WandB

__all__ = [
  "TRACKERS",
  "Accuracies",
  "Bar",
  "Curve",
  "Interval",
  "Lines",
  "MLflow",
  "MetricsFile",
  "ProgressBar",
  "StudentReport",
  "TensorBoard",
  "Tracker",
  "Trackio",
  "WandB",
  "anytime_table",
  "bars_figure",
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
  "phases_by_role",
  "run_accuracies",
  "student_tables",
  "trackers",
  "validated_stages",
  "verdict",
  "write_atomically",
  "write_index",
  "write_student_report",
]
