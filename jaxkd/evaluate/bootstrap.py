"""Paired bootstrap over images: the interval of a difference between two predictors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxkd.errors import ConfigError


class Difference(NamedTuple):
  """A difference between two predictors on the same images, and its interval.

  Attributes:
    value: the difference on these images.
    low: lower end of the interval.
    high: upper end of the interval.
  """

  value: float
  low: float
  high: float


class Resampling(NamedTuple):
  """The samples of a bootstrap.

  Attributes:
    samples: number of samples, at least 100.
    level: level of confidence of the interval, between 0 and 1.
    seed: of the random numbers; equal seeds give equal intervals.
  """

  samples: int = 1000
  level: float = 0.95
  seed: int = 0


RESAMPLING = Resampling()


def paired_means(ours: Any, theirs: Any, resampling: Resampling = RESAMPLING) -> list[Difference]:
  """Bootstrap mean(ours) - mean(theirs) over images, for several quantities at once.

  A sample draws N of the N images with replacement, the same for both sides and all quantities. The
  interval is between the quantiles (1 - level) / 2 and (1 + level) / 2 of the samples.

  Args:
    ours: (Q, N), Q quantities of N images.
    theirs: (Q, N), of the same images.
    resampling: its samples.

  Raises:
    ConfigError: for different shapes, fewer than two images, values that are not finite, or a
      resampling out of range.

  Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.

  >>> [found] = paired_means([[1.0, 0.0]], [[1.0, 1.0]])
  >>> found
  Difference(value=-0.5, low=-1.0, high=0.0)
  """
  both = [np.asarray(side, np.float64) for side in (ours, theirs)]
  if both[0].ndim != 2 or both[0].shape != both[1].shape:
    shapes = " and ".join(str(side.shape) for side in both)
    raise ConfigError(f"ours and theirs: shapes {shapes}, expected (quantities, images), the same")
  difference = both[0] - both[1]
  if not np.isfinite(difference).all():
    raise ConfigError("ours or theirs: values are not finite")
  count = difference.shape[1]
  means = [
    difference @ np.bincount(chosen, minlength=count) / count
    for chosen in _draws(count, resampling)
  ]
  return _intervals(difference.mean(axis=1), means, resampling)


def paired_statistic(
  statistic: Callable[[Any, np.ndarray], float],
  ours: Any,
  theirs: Any,
  count: int,
  resampling: Resampling = RESAMPLING,
) -> Difference:
  """Bootstrap statistic(ours) - statistic(theirs) over images, as `paired_means`.

  Args:
    statistic: (a side, numbers of the chosen images, with repetitions) -> number.
    ours: one side, in any form that `statistic` takes.
    theirs: the other side.
    count: number of images.
    resampling: its samples.

  Raises:
    ConfigError: as `paired_means`.

  >>> median = lambda values, chosen: float(np.median(values[chosen]))
  >>> paired_statistic(median, np.array([3.0, 3.0]), np.array([1.0, 1.0]), 2)
  Difference(value=2.0, low=2.0, high=2.0)
  """

  def gap(chosen: np.ndarray) -> float:
    return statistic(ours, chosen) - statistic(theirs, chosen)

  samples = [np.array([gap(chosen)]) for chosen in _draws(count, resampling)]
  [found] = _intervals(np.array([gap(np.arange(count))]), samples, resampling)
  return found


def _draws(count: int, resampling: Resampling) -> Iterator[np.ndarray]:
  if count < 2:
    raise ConfigError(f"images: an interval needs at least two, got {count}")
  if resampling.samples < 100:
    raise ConfigError(f"samples={resampling.samples}: expected at least 100")
  if not 0 < resampling.level < 1:
    raise ConfigError(f"level={resampling.level:g}: expected a number between 0 and 1")
  rng = np.random.default_rng(resampling.seed)
  return (rng.integers(0, count, count) for _ in range(resampling.samples))


def _intervals(
  values: np.ndarray, samples: Sequence[np.ndarray], resampling: Resampling
) -> list[Difference]:
  outside = (1 - resampling.level) / 2
  low, high = np.quantile(np.stack(samples), (outside, 1 - outside), axis=0)
  return [Difference(*map(float, ends)) for ends in zip(values, low, high, strict=True)]
