import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxkd.errors import ConfigError
from jaxkd.evaluate import (
  anytime_curve,
  budgeted_curve,
  chosen_exits,
  confidences,
  exit_shares,
  fit_thresholds,
)

EXITS = 4
ROUNDING = 1e-9

rising = st.lists(st.integers(1, 10**9), min_size=EXITS, max_size=EXITS, unique=True).map(sorted)
shares_of_range = st.floats(0, 1)
seeds = st.integers(0, 2**32 - 1)


def within(costs, share):
  return min(max(costs[0] + share * (costs[-1] - costs[0]), costs[0]), costs[-1])


def mean_cost(values, costs, budget):
  exits = chosen_exits(values, fit_thresholds(values, costs, budget))
  return np.asarray(costs, float)[exits].mean()


def distinct(seed, count=23):
  return np.random.default_rng(seed).permutation(count * EXITS).reshape(count, EXITS)


def tied(seed, count=23):
  return np.random.default_rng(seed).integers(0, 3, (count, EXITS))


@hypothesis.given(rising, shares_of_range)
def test_mean_cost_of_shares_is_the_budget(costs, share):
  budget = within(costs, share)
  shares = exit_shares(costs, budget)
  assert shares.sum() == pytest.approx(1)
  assert shares @ np.asarray(costs, float) == pytest.approx(budget, rel=1e-9)


@hypothesis.given(rising, shares_of_range)
def test_shares_are_a_geometric_progression(costs, share):
  shares = exit_shares(costs, within(costs, share))
  for before, here, after in zip(shares, shares[1:], shares[2:], strict=False):
    assert before * after == pytest.approx(here**2, abs=1e-12)


@hypothesis.given(rising, shares_of_range, seeds)
def test_thresholds_meet_the_budget_to_within_one_image(costs, share, seed):
  values, budget = distinct(seed), within(costs, share)
  cost = mean_cost(values, costs, budget)
  assert cost <= budget * (1 + ROUNDING)
  assert cost > budget - (costs[-1] - costs[0]) / len(values) - ROUNDING * budget


@hypothesis.given(rising, shares_of_range, seeds)
def test_ties_never_cost_more_than_the_budget(costs, share, seed):
  budget = within(costs, share)
  assert mean_cost(tied(seed), costs, budget) <= budget * (1 + ROUNDING)


@hypothesis.given(rising, shares_of_range, shares_of_range, seeds)
def test_mean_cost_rises_with_the_budget(costs, one, other, seed):
  values = distinct(seed)
  low, high = (mean_cost(values, costs, within(costs, s)) for s in sorted((one, other)))
  assert low <= high


@hypothesis.given(rising, seeds, st.booleans())
def test_least_budget_uses_the_first_exit_and_largest_the_last(costs, seed, ties):
  values = tied(seed) if ties else distinct(seed)
  first = chosen_exits(values, fit_thresholds(values, costs, costs[0]))
  last = chosen_exits(values, fit_thresholds(values, costs, costs[-1]))
  assert set(first) == {0}
  assert set(last) == {EXITS - 1}


@hypothesis.given(rising, shares_of_range, seeds)
def test_most_confident_images_leave_first(costs, share, seed):
  values = distinct(seed)
  exits = chosen_exits(values, fit_thresholds(values, costs, within(costs, share)))
  for k in range(EXITS - 1):
    here, later = values[exits == k, k], values[exits > k, k]
    assert not (here.size and later.size) or here.min() > later.max()


def test_image_leaves_at_the_first_exit_whose_threshold_it_reaches():
  values = np.array([[5, 9], [4, 9], [4, 0]])
  assert chosen_exits(values, [5, 10]).tolist() == [0, 1, 1]
  assert chosen_exits(values, [np.inf, -np.inf]).tolist() == [1, 1, 1]


def test_confidence_is_the_log_of_the_largest_probability():
  probabilities = np.random.default_rng(0).dirichlet(np.ones(5), size=(7, 3))
  found = confidences(np.log(probabilities) + 3.0)
  np.testing.assert_allclose(found, np.log(probabilities.max(-1)))


def test_confidence_separates_probabilities_that_float32_rounds_to_one():
  sure, surer = confidences(np.array([[30.0, 0.0], [40.0, 0.0]], np.float32))
  assert sure < surer < 0
  assert np.isfinite(confidences(np.array([1e4, -1e4])))


def logits_of(probability_of_first):
  p = np.asarray(probability_of_first, float)
  return np.log(np.stack([p, 1 - p], axis=-1))


# Half of the images are easy: exit 0 is confident and right. For the others its probabilities are
# near 1/2.
CALIBRATED = logits_of(
  [[0.99, 0.99]] * 4 + [[0.55, 0.99], [0.52, 0.99], [0.47, 0.99], [0.46, 0.99]]
)
TRUTH = np.zeros(8, int)


def test_budgeted_prediction_beats_mixtures_for_calibrated_exits():
  costs = [1, 3]
  first, last = (row["accuracy"] for row in anytime_curve(CALIBRATED, TRUTH, costs))
  assert (first, last) == (0.75, 1.0)
  (row,) = budgeted_curve(CALIBRATED, CALIBRATED, TRUTH, costs, [2])
  assert row["multiply_adds"] == 2
  assert row["shares"] == [0.5, 0.5]
  # Half of the images at random to each exit would give (0.75 + 1) / 2.
  assert row["accuracy"] == 1.0


def test_thresholds_depend_on_the_validation_split_alone():
  hard = logits_of(np.full((6, 2), 0.51))
  runs = [(CALIBRATED, TRUTH), (hard, np.zeros(6, int)), (hard, np.ones(6, int))]
  easy, unsure, wrong = (
    budgeted_curve(CALIBRATED, logits, labels, [1, 3], [1.5, 2]) for logits, labels in runs
  )
  for rows in itertools.zip_longest(easy, unsure, wrong):
    assert len({row["thresholds"] for row in rows}) == 1
  # Test images that are harder than the validation split's cost more than the budget.
  assert [row["multiply_adds"] for row in unsure] == [3, 3]
  assert [row["accuracy"] for row in unsure] == [1, 1]
  assert [row["accuracy"] for row in wrong] == [0, 0]


def test_single_exit_takes_all_images():
  assert fit_thresholds(np.zeros((3, 1)), [7], 7) == (-np.inf,)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: exit_shares([2, 5], 1.9), r"budget=1.9: expected 2 .* to 5 "),
    (lambda: exit_shares([2, 5], 5.1), r"budget=5.1: expected 2 .* to 5 "),
    (lambda: exit_shares([2, 5], float("nan")), "budget=nan"),
    (lambda: exit_shares([5, 2], 3), "costs: expected one or more rising numbers"),
    (lambda: fit_thresholds(np.zeros((4, 3)), [1, 2], 1), r"confidences: shape \(4, 3\)"),
    (lambda: fit_thresholds(np.zeros((0, 2)), [1, 2], 1), "at least one example"),
    (lambda: fit_thresholds(np.full((2, 2), np.nan), [1, 2], 1), "NaN"),
    (lambda: chosen_exits(np.zeros((4, 3)), [0.0]), "thresholds: 1 for"),
    (lambda: budgeted_curve(CALIBRATED, CALIBRATED[:, :1], TRUTH, [1, 2], [1]), "test_logits"),
    (lambda: budgeted_curve(CALIBRATED, CALIBRATED, TRUTH[1:], [1, 2], [1]), "test_labels"),
  ],
)
def test_errors_name_the_argument_and_accepted_values(call, message):
  with pytest.raises(ConfigError, match=message):
    call()
