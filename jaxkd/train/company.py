"""Whether what is computed of an example depends on the examples that it meets in a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxkd.types import Batch

# Relative to the largest value: more than rounding in another order does in float32.
TOLERANCE = 1e-3


def company_matters(
  compute: Callable[[Batch], Any], batch: Batch, *, tolerance: float = TOLERANCE
) -> bool:
  """Whether examples get other values in other places of the batch or among other examples.

  A mere change of order would not show what all examples do to each, such as batch statistics. So
  every other example makes way for a copy of its neighbour, and then the neighbours for copies of
  these: each example is looked at twice, in its own place and in its neighbour's.

  Args:
    compute: batch -> pytree of arrays (B, ...), compiled or not.
    batch: B >= 2 examples that are not all alike.
    tolerance: difference that rounding may make, relative to an array's largest value.
  """
  size = len(batch.indices)
  usual = _host(compute(batch))
  pairs = np.arange(size) // 2 * 2
  for chosen in (pairs, np.minimum(pairs + 1, size - 1)):
    # Each array is (B, ...), so `chosen` picks examples.
    among_others = _host(compute(jax.tree.map(lambda x, at=chosen: np.asarray(x)[at], batch)))
    for before, after in zip(usual, among_others, strict=True):
      allowed = tolerance * np.max(np.abs(before), initial=0.0)
      if not np.all(np.abs(after - before[chosen]) <= allowed):
        return True
  return False


def _host(tree: Any) -> list[np.ndarray]:
  return [np.asarray(x, np.float64) for x in jax.device_get(jax.tree.leaves(tree))]
