"""Another example of the same class for each example of a batch, drawn anew in every epoch."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence

import numpy as np

from jaxkd.data.examples import UNLABELLED, Examples
from jaxkd.errors import ConfigError


class PartnerDraws:
  """Draws of partners, functions of the seed, the epoch, the view and the example alone.

  The partner of an example is another one of its class, each with equal probability. An example
  without a label, or the only one of its class, is its own partner. The draws do not depend on
  batches, devices and processes, so that a stream of batches resumes with them exactly.
  """

  def __init__(self, examples: Examples, seed: int, names: Sequence[str]) -> None:
    """Sort the examples by class.

    Args:
      examples: examples with one class each.
      seed: seed of the stream of batches.
      names: names of views, each with draws of its own.

    Raises:
      ConfigError: for examples that do not have one class each, or that have a mask, which would
        be that of the other example.
    """
    labels = np.asarray(examples.labels)
    if labels.ndim > 1:
      raise ConfigError(
        f"partners={tuple(names)}: expected one class per example, got labels of shape "
        f"{labels.shape[1:]} each"
      )
    if getattr(examples, "mask", None) is not None:
      raise ConfigError(f"partners={tuple(names)}: expected examples without a mask")
    self._count, self._seed, self._names = len(labels), seed, tuple(names)
    self._members = np.argsort(labels, kind="stable")
    # Of each example: the first place of its class in `members`, the class's size, its own place.
    ordered = labels[self._members]
    self._first = np.searchsorted(ordered, labels, side="left")
    self._size = np.searchsorted(ordered, labels, side="right") - self._first
    self._place = np.empty(self._count, np.int64)
    self._place[self._members] = np.arange(self._count)
    self._alone = (self._size < 2) | (labels == UNLABELLED)

  def of(self, positions: np.ndarray, epochs: np.ndarray) -> dict[str, np.ndarray]:
    """Return the positions of the partners, (B,) int32 for each view.

    Args:
      positions: (B,) positions within the examples.
      epochs: (B,) number of earlier epochs of each.
    """
    return {name: self._partners(name, positions, epochs) for name in self._names}

  def _partners(self, name: str, positions: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    share = np.empty(len(positions))
    for epoch in np.unique(epochs):
      drawn = _shares(self._count, self._seed, int(epoch), zlib.crc32(name.encode()))
      share[epochs == epoch] = drawn[positions[epochs == epoch]]
    others = np.maximum(self._size[positions] - 1, 1)
    chosen = self._first[positions] + np.minimum((share * others).astype(np.int64), others - 1)
    chosen += chosen >= self._place[positions]  # the example itself is left out
    chosen = np.minimum(chosen, self._count - 1)  # of examples that are their own partners
    return np.where(self._alone[positions], positions, self._members[chosen]).astype(np.int32)


# Consecutive steps need the same epoch; several are cached for the threads that read ahead.
@functools.lru_cache(maxsize=8)
def _shares(n: int, *key: int) -> np.ndarray:
  """Return n numbers in [0, 1), a function of the key alone, by a stream that NumPy has frozen."""
  bits = np.random.MT19937(np.random.SeedSequence(key))
  return np.random.RandomState(bits).random_sample(n)
