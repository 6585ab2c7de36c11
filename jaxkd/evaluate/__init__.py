"""Evaluation of predictors: quality and cost.

Accuracy and cross-entropy; distances between a student's and its teacher's features; multiply-adds.
For models with several exits: anytime curves, budgeted classification, and inference that stops at
the chosen exit.
"""

from jaxkd.evaluate.anytime import anytime_at, anytime_curve, exit_logits
from jaxkd.evaluate.budgeted import (
  budgeted_curve,
  chosen_exits,
  confidences,
  exit_shares,
  fit_thresholds,
)
from jaxkd.evaluate.calibration import calibration_bins, calibration_error
from jaxkd.evaluate.costs import exit_costs, multiply_adds
from jaxkd.evaluate.early_exit import EarlyExit, EarlyPredictions, batch_sizes
from jaxkd.evaluate.metrics import feature_distances, score

__all__ = [
  "EarlyExit",
  "EarlyPredictions",
  "anytime_at",
  "anytime_curve",
  "batch_sizes",
  "budgeted_curve",
  "calibration_bins",
  "calibration_error",
  "chosen_exits",
  "confidences",
  "exit_costs",
  "exit_logits",
  "exit_shares",
  "feature_distances",
  "fit_thresholds",
  "multiply_adds",
  "score",
]
