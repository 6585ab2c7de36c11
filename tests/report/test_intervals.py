"""Confidence intervals of means, against a worked example, and verdicts from them."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxkd.errors import ConfigError
from jaxkd.report import mean_interval, paired_difference, verdict

# Percent in thousandths, as from runs; arbitrary floats would add rounding errors.
accuracies = st.integers(0, 100_000).map(lambda n: n / 1000)
pairs = st.lists(st.tuples(accuracies, accuracies), min_size=2, max_size=8)


def unzip(drawn):
  ours, theirs = zip(*drawn, strict=True)
  return list(ours), list(theirs)


def test_interval_equals_a_worked_example():
  """Differences 1, 2, 3, 4, 5: mean 3, squares about it 4 + 1 + 0 + 1 + 4 = 10, s^2 = 10 / 4.

  The mean's standard error is sqrt(2.5 / 5) = 0.70711; t(0.975; 4) is 2.77645 and t(0.95; 4)
  2.13185 in any table.
  """
  ours, theirs = [11, 7, 23, 9, 15], [10, 5, 20, 5, 10]
  found = paired_difference(ours, theirs)
  assert (found.mean, found.seeds) == (3, 5)
  assert found.low == pytest.approx(3 - 1.96324, abs=1e-5)
  assert found.high == pytest.approx(3 + 1.96324, abs=1e-5)
  narrower = paired_difference(ours, theirs, level=0.9)
  assert narrower.high - 3 == 3 - narrower.low == pytest.approx(1.50745, abs=1e-5)


def test_two_seeds_give_a_wide_interval():
  """The standard error of 0 and 2 is 1, and t(0.975; 1) is 12.7062."""
  found = mean_interval([0, 2])
  assert (found.mean, found.seeds) == (1, 2)
  assert (found.low, found.high) == (pytest.approx(-11.7062, abs=1e-4), pytest.approx(13.7062))


def test_effect_of_a_seed_on_both_runs_cancels():
  effect_of_seed = np.array([-20.0, 0.0, 30.0])
  found = paired_difference(effect_of_seed + np.arange(1, 4), effect_of_seed)
  assert found == paired_difference([1, 2, 3], [0, 0, 0])


@hypothesis.given(pairs, st.integers(-50, 50))
def test_adding_a_constant_shifts_the_interval(drawn, shift):
  ours, theirs = unzip(drawn)
  before = paired_difference(ours, theirs)
  after = paired_difference([x + shift for x in ours], theirs)
  for name in ("mean", "low", "high"):
    assert getattr(after, name) == pytest.approx(getattr(before, name) + shift, abs=1e-9)


@hypothesis.given(pairs)
def test_swapping_runs_mirrors_the_interval_and_swaps_the_verdict(drawn):
  ours, theirs = unzip(drawn)
  first, swapped = paired_difference(ours, theirs), paired_difference(theirs, ours)
  assert swapped == (-first.mean, -first.high, -first.low, first.seeds)
  opposite = {"holds": "contradicted", "contradicted": "holds", "not shown": "not shown"}
  assert verdict(swapped.low, swapped.high) == opposite[verdict(first.low, first.high)]
  assert first.low <= first.mean <= first.high


@hypothesis.given(accuracies, st.integers(2, 8))
def test_equal_values_give_an_interval_of_length_0(value, count):
  assert mean_interval([value] * count) == (value, value, value, count)
  assert paired_difference([value] * count, [value] * count) == (0, 0, 0, count)


@pytest.mark.parametrize(
  ("low", "high", "expected"),
  [
    (1e-9, 1, "holds"),
    (0.0, 1, "not shown"),
    (-1, 1, "not shown"),
    (-1, 0.0, "not shown"),
    (-1, -1e-9, "contradicted"),
  ],
)
def test_verdict_needs_the_whole_interval_on_one_side_of_0(low, high, expected):
  assert verdict(low, high) == expected


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: paired_difference([1.0], [1.0]), "^ours: .*at least two seeds, got 1"),
    (lambda: paired_difference([1.0, 2.0], [1.0]), "^theirs: 1 values, expected 2"),
    (lambda: paired_difference([1.0, 2.0], [1.0, math.nan]), "^theirs: expected finite"),
    (lambda: mean_interval([]), "^values: .*at least two seeds, got 0"),
    (lambda: mean_interval([1.0, math.inf]), "^values: expected finite"),
    (lambda: mean_interval([1.0, 2.0], level=95), "^level=95: expected a number between 0 and 1"),
    (lambda: verdict(1.0, 0.0), "^low=1, high=0: expected low <= high"),
    (lambda: verdict(math.nan, 0.0), "^low=nan"),
  ],
)
def test_errors_name_the_argument(call, message):
  with pytest.raises(ConfigError, match=message):
    call()
