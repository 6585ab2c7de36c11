"""Budgeted batch classification: easy images leave early, so that a mean cost is met.

An image leaves at the first exit whose confidence reaches that exit's threshold. The thresholds are
fitted on a validation split to a budget of multiply-adds per image, and then applied to other
images, whose mean cost may differ from the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxkd.errors import ConfigError
from jaxkd.evaluate.anytime import Row, check_logits, rising

# Bound of the bisection: exp(-1000) is 0 in float64, so all shares but one are 0 there.
_LARGEST_LOG_RATIO = 1000.0


def confidences(logits: np.ndarray) -> np.ndarray:
  """Return the confidence of predictions: the logarithm of the largest probability, at most 0.

  The order is that of the probability itself, but predictions whose float32 probability rounds to 1
  stay distinct, so there are fewer ties.

  Args:
    logits: (..., C).

  Returns:
    (...,) float64.

  >>> round(float(np.exp(confidences(np.log([0.2, 0.7, 0.1])))), 6)
  0.7
  """
  logits = np.asarray(logits, np.float64)
  others = np.exp(logits - logits.max(axis=-1, keepdims=True))
  # The largest logit's own term is 1, which log1p adds.
  np.put_along_axis(others, logits.argmax(axis=-1)[..., None], 0.0, axis=-1)
  return -np.log1p(others.sum(axis=-1))


def exit_shares(costs: Sequence[float], budget: float) -> np.ndarray:
  """Compute the share of images that leaves at each exit, so that their mean cost is the budget.

  The share of exit k is proportional to p ** k. The mean cost rises with p, which is found by
  bisection.

  Args:
    costs: cost of leaving at each of the M exits, in rising order.
    budget: mean cost, from costs[0] (all leave at the first exit) to costs[-1] (all at the last).

  Returns:
    (M,) float64 shares that sum to 1.

  Raises:
    ConfigError: for a budget out of that range, or costs that do not rise.

  Source: Huang et al., Multi-Scale Dense Networks, ICLR 2018, section 3. Their published code
  (MSDNet-PyTorch, adaptive_inference.py) does not solve for a budget; it tries p = 1/20, 2/20, ...,
  40/20 and reports the cost of each.

  >>> exit_shares([1, 2, 3], 2.0).round(6).tolist()
  [0.333333, 0.333333, 0.333333]
  """
  values = rising(costs)
  if not values[0] <= budget <= values[-1]:
    raise ConfigError(
      f"budget={budget:g}: expected {values[0]:g} (all leave at the first exit) to {values[-1]:g} "
      "(all leave at the last)"
    )
  # At both ends of the range the result is exact, not up to rounding.
  if budget in (values[0], values[-1]):
    return np.eye(len(values))[0 if budget == values[0] else -1]
  low, high = -_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO
  for _ in range(100):
    middle = (low + high) / 2
    if _shares(middle, len(values)) @ values <= budget:
      low = middle
    else:
      high = middle
  return _shares(low, len(values))


def fit_thresholds(
  confidences: np.ndarray, costs: Sequence[float], budget: float
) -> tuple[float, ...]:
  """Fit each exit's threshold: the least confidence with which an image leaves there.

  From the first exit to the last, the threshold is chosen so that the number of images that have
  left reaches the cumulated share of `exit_shares`, rounded up to a whole image. The most confident
  of the remaining images leave, and all that tie with the last of them. The mean cost of these
  images therefore is at most the budget; without ties, the difference is less than
  (costs[-1] - costs[0]) / N.

  Args:
    confidences: (N, M), of a validation split that was not trained on; higher is surer.
    costs: cost of leaving at each of the M exits, in rising order.
    budget: mean cost per image.

  Returns:
    M numbers: inf where no image leaves; the last is -inf, as all remaining images leave there.

  Raises:
    ConfigError: as `exit_shares`; if confidences have another shape, are NaN or empty.

  Source: as `exit_shares`. The published code rounds each exit's own share down, disables an exit
  (threshold 1e8) if too few images are left, and averages exits that it searches for; ties may
  there keep images that the budget allows to leave.

  >>> fit_thresholds(np.log([[0.5, 0.9], [1.0, 0.9]]), [1, 3], budget=2)
  (0.0, -inf)
  """
  values = np.asarray(confidences, np.float64)
  if values.ndim != 2 or values.shape[1] != len(costs) or not len(values):
    raise ConfigError(
      f"confidences: shape {values.shape}, expected (examples, {len(costs)}), as many exits as "
      "costs, and at least one example"
    )
  if np.isnan(values).any():
    raise ConfigError("confidences: some are NaN")
  shares = exit_shares(costs, budget)
  # Cumulative and rounded up, since an image that leaves earlier costs less.
  wanted = np.ceil(len(values) * np.cumsum(shares)).astype(int)
  left = np.zeros(len(values), bool)
  thresholds = []
  for own, target in zip(values.T[:-1], wanted[:-1], strict=True):
    count = min(target, len(values)) - left.sum()
    threshold = math.inf
    if count > 0:
      threshold = float(np.sort(own[~left])[-count])
    thresholds.append(threshold)
    left |= own >= threshold
  return (*thresholds, -math.inf)


def chosen_exits(confidences: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
  """Return the exit at which each image leaves: the first whose threshold it reaches, or the last.

  Args:
    confidences: (N, M).
    thresholds: M numbers; the last one is not used.

  Returns:
    (N,) exits, from 0.

  Raises:
    ConfigError: if the numbers of thresholds and exits differ.

  >>> chosen_exits(np.array([[0.9, 0.5], [0.1, 0.5]]), [0.8, 0.0]).tolist()
  [0, 1]
  """
  shape = np.shape(confidences)
  if len(shape) != 2 or shape[1] != len(thresholds):
    raise ConfigError(f"thresholds: {len(thresholds)} for confidences of shape {shape}")
  leaves = np.asarray(confidences) >= np.asarray(thresholds)[None]
  leaves[:, -1] = True
  return leaves.argmax(axis=1)


def budgeted_curve(
  validation_logits: np.ndarray,
  test_logits: np.ndarray,
  test_labels: np.ndarray,
  costs: Sequence[int],
  budgets: Sequence[float],
) -> list[Row]:
  """Compute the test accuracy for each budget.

  Args:
    validation_logits: (N, M, C); the thresholds are fitted to these alone.
    test_logits: (N', M, C).
    test_labels: (N',) class numbers.
    costs: multiply-adds up to each exit.
    budgets: mean multiply-adds per image.

  Returns:
    For each budget {"budget", "thresholds", "multiply_adds": the mean on the test split,
    "accuracy", "shares": of the test images that leave at each exit}.

  Raises:
    ConfigError: as `fit_thresholds`.
  """
  check_logits("validation_logits", validation_logits, costs)
  check_logits("test_logits", test_logits, costs)
  labels = np.asarray(test_labels)
  if labels.shape != test_logits.shape[:1]:
    raise ConfigError(f"test_labels: shape {labels.shape}, expected ({len(test_logits)},)")
  validation_confidences, test_confidences = map(confidences, (validation_logits, test_logits))
  correct = np.argmax(test_logits, axis=-1) == labels[:, None]
  rows = []
  for budget in budgets:
    thresholds = fit_thresholds(validation_confidences, costs, budget)
    exits = chosen_exits(test_confidences, thresholds)
    shares = np.bincount(exits, minlength=len(costs)) / len(exits)
    rows.append(
      {
        "budget": float(budget),
        "thresholds": thresholds,
        "multiply_adds": float(np.asarray(costs, np.float64)[exits].mean()),
        "accuracy": float(correct[np.arange(len(exits)), exits].mean()),
        "shares": shares.tolist(),
      }
    )
  return rows


def _shares(log_ratio: float, count: int) -> np.ndarray:
  powers = log_ratio * np.arange(count)
  weights = np.exp(powers - powers.max())
  return weights / weights.sum()
