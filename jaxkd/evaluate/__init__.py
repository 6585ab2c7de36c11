"""Evaluation of predictors: quality and cost.

Accuracy and cross-entropy; calibration; fidelity to a teacher; similarity of features; intervals of
differences over images; multiply-adds.
For models with several exits: anytime curves, budgeted classification, and inference that stops at
the chosen exit.
"""

from jaxkd.evaluate.anytime import anytime_at, anytime_curve, exit_logits
from jaxkd.evaluate.bootstrap import Difference, Resampling, paired_means, paired_statistic
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
from jaxkd.evaluate.fidelity import agreement_where_wrong, image_fidelity
from jaxkd.evaluate.metrics import feature_distances, score
from jaxkd.evaluate.quality import (
  class_accuracy,
  confusion_matrix,
  image_scores,
  selective_accuracy,
)
from jaxkd.evaluate.reliability import Reliability, equal_mass_reliability, fit_temperature
from jaxkd.evaluate.similarity import cka_matrix, linear_cka
from jaxkd.evaluate.student_report import report

__all__ = [
  "Difference",
  "EarlyExit",
  "EarlyPredictions",
  "Reliability",
  "Resampling",
  "agreement_where_wrong",
  "anytime_at",
  "anytime_curve",
  "batch_sizes",
  "budgeted_curve",
  "calibration_bins",
  "calibration_error",
  "chosen_exits",
  "cka_matrix",
  "class_accuracy",
  "confidences",
  "confusion_matrix",
  "equal_mass_reliability",
  "exit_costs",
  "exit_logits",
  "exit_shares",
  "feature_distances",
  "fit_temperature",
  "fit_thresholds",
  "image_fidelity",
  "image_scores",
  "linear_cka",
  "multiply_adds",
  "paired_means",
  "paired_statistic",
  "report",
  "score",
  "selective_accuracy",
]
