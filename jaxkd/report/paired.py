"""Means over seeds with confidence intervals, and what an interval says of a claim."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

from jaxkd.errors import ConfigError, needed_by

Verdict = Literal["holds", "not shown", "contradicted"]


class Interval(NamedTuple):
  """A mean over runs, or over the differences of pairs of runs, and its confidence interval.

  Attributes:
    mean: of the values, or differences.
    low: the lower end of its interval.
    high: the upper end.
    seeds: how many runs, or pairs.
  """

  mean: float
  low: float
  high: float
  seeds: int


def paired_difference(
  ours: Sequence[float], theirs: Sequence[float], level: float = 0.95
) -> Interval:
  """The mean of ours - theirs, seed by seed, and its interval by Student's t.

  With d the n differences and s their sample standard deviation (divided by n - 1), the interval is
  mean(d) -+ t s / sqrt(n), t being the quantile (1 + level) / 2 of Student's distribution with
  n - 1 degrees of freedom. It is exact for normal differences. What a seed does to both runs alike
  cancels. Equal differences give a point.

  Args:
    ours: one number per seed.
    theirs: as many, in the same order of seeds.
    level: of confidence, between 0 and 1.

  Raises:
    ConfigError: for fewer than two seeds, not as many of theirs, values that are not finite, or a
      level out of range.

  Source: Student, "The Probable Error of a Mean", Biometrika 1908.

  >>> paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).mean
  2.0
  """
  if len(ours) != len(theirs):
    raise ConfigError(f"theirs: {len(theirs)} values, expected {len(ours)}, as many as ours")
  _check("ours", ours)
  _check("theirs", theirs)
  pairs = zip(ours, theirs, strict=True)
  return mean_interval([float(a) - float(b) for a, b in pairs], level)


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
  """The mean and its interval by Student's t, as `paired_difference` has it of the differences.

  Args:
    values: one number per seed.
    level: of confidence, between 0 and 1.

  Raises:
    ConfigError: for fewer than two values, some that are not finite, or a level out of range.

  >>> mean_interval([0.1, 0.1, 0.1])
  Interval(mean=0.1, low=0.1, high=0.1, seeds=3)
  """
  _check("values", values)
  if not 0 < level < 1:
    raise ConfigError(f"level={level:g}: expected a number between 0 and 1")
  # Here, because it takes as long to import as all the rest of this package.
  with needed_by("jaxkd.report"):
    from scipy.special import stdtrit

  # These compute without rounding: the spread of equal numbers is 0, and their mean is theirs.
  numbers = [float(value) for value in values]
  mean, spread = statistics.mean(numbers), statistics.stdev(numbers)
  count = len(numbers)
  reach = float(stdtrit(count - 1, (1 + level) / 2)) * spread / math.sqrt(count)
  return Interval(mean, mean - reach, mean + reach, count)


def verdict(low: float, high: float) -> Verdict:
  """What the interval of a difference says of the claim that it is positive; nothing else counts.

  Args:
    low: the interval's lower end.
    high: its upper end.

  Returns:
    "holds" if the whole interval lies above 0, "contradicted" if it lies below 0, or else
    "not shown".

  Raises:
    ConfigError: if low is above high, or one is not a number.

  >>> verdict(0.1, 0.3), verdict(-0.1, 0.3), verdict(0.0, 0.0), verdict(-0.3, -0.1)
  ('holds', 'not shown', 'not shown', 'contradicted')
  """
  if not low <= high:
    raise ConfigError(f"low={low:g}, high={high:g}: expected low <= high")
  if low > 0:
    return "holds"
  return "contradicted" if high < 0 else "not shown"


def _check(argument: str, values: Sequence[float]) -> None:
  if len(values) < 2:
    raise ConfigError(f"{argument}: an interval needs at least two seeds, got {len(values)}")
  if not all(math.isfinite(value) for value in values):
    raise ConfigError(f"{argument}: expected finite numbers, got {list(values)!r}")
