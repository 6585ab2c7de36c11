"""Similarity of two networks' features: linear centred kernel alignment (CKA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxkd.errors import ConfigError

# The unbiased estimate divides by N (N - 3).
_LEAST = 4


def linear_cka(ours: Any, theirs: Any, *, debiased: bool = True) -> float:
  """Compute the linear CKA of two networks' features of the same examples.

  CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) of the Gram matrices K = X X^T and L = Y Y^T. It
  does not depend on rotations and the scale of either side. The plain estimate of HSIC (the trace
  of the centred product) approaches 1 for any features if they have many more channels than there
  are examples; the debiased one is near 0 for independent features and may be slightly negative.

  Args:
    ours: (N, ...), flattened to (N, P); N >= 4.
    theirs: (N, ...), flattened to (N, Q).
    debiased: the unbiased estimate of HSIC; False is the formula of Kornblith et al.

  Returns:
    CKA, at most 1; NaN if the features of either side do not vary.

  Raises:
    ConfigError: for different numbers of examples, fewer than 4, or features that are not finite.

  Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019,
  eq. 3; Song et al., JMLR 2012, eq. 5 (unbiased HSIC), as Nguyen et al., ICLR 2021, use it.

  >>> x = np.random.default_rng(0).normal(size=(8, 3))
  >>> round(linear_cka(x, -2 * x[:, ::-1]), 6)
  1.0
  """
  return float(cka_matrix([ours], [theirs], debiased=debiased)[0, 0])


def cka_matrix(ours: Sequence[Any], theirs: Sequence[Any], *, debiased: bool = True) -> np.ndarray:
  """Compute the `linear_cka` of every stage of one network with every stage of another.

  Args:
    ours: (N, ...) of each stage.
    theirs: likewise, of the same examples.
    debiased: as for `linear_cka`.

  Returns:
    (len(ours), len(theirs)) float64; NaN where features do not vary.

  Raises:
    ConfigError: as `linear_cka`.

  >>> x = np.random.default_rng(0).normal(size=(8, 3))
  >>> cka_matrix([x], [x, x[:, :1] * 2]).shape
  (1, 2)
  """
  first = [_gram("ours", stage) for stage in ours]
  second = [_gram("theirs", stage) for stage in theirs]
  counts = [len(gram) for gram in (*first, *second)]
  if len(set(counts)) > 1:
    other = next(count for count in counts if count != counts[0])
    raise ConfigError(f"theirs: {other} examples, expected {counts[0]} as ours")
  if counts and counts[0] < _LEAST:
    raise ConfigError(f"ours: {counts[0]} examples, expected at least {_LEAST}")
  product = _unbiased if debiased else _plain
  own, others = ([product(gram, gram) for gram in side] for side in (first, second))
  found = np.full((len(first), len(second)), np.nan)
  for row, one in enumerate(first):
    for column, other_gram in enumerate(second):
      if (scale := own[row] * others[column]) > 0:
        found[row, column] = product(one, other_gram) / np.sqrt(scale)
  return found


def _gram(what: str, features: Any) -> np.ndarray:
  """Return the Gram matrix of centred features, scaled to a mean diagonal of 1."""
  x = np.asarray(features, np.float64)
  if x.ndim < 2 or not len(x):
    raise ConfigError(f"{what}: shape {x.shape}, expected (examples, channels)")
  if not np.isfinite(x).all():
    raise ConfigError(f"{what}: features are not finite")
  x = x.reshape(len(x), -1)
  largest = np.abs(x).max()
  x = (x - x.mean(axis=0)) / (largest or 1.0)
  gram = x @ x.T
  mean = gram.diagonal().mean()
  # Below this, what is left of constant features is rounding.
  return gram / mean if mean > 1e-24 else np.zeros_like(gram)


def _plain(first: np.ndarray, second: np.ndarray) -> float:
  return float((first * second).sum())


def _unbiased(first: np.ndarray, second: np.ndarray) -> float:
  count = len(first)
  k, m = (x - np.diag(x.diagonal()) for x in (first, second))
  rows, columns = k.sum(axis=0), m.sum(axis=0)
  total = (k * m).sum() + rows.sum() * columns.sum() / ((count - 1) * (count - 2))
  return float(total - 2 * (rows @ columns) / (count - 2)) / (count * (count - 3))
