"""Seeded choices of examples: orders, balanced subsets, held-out parts."""

from __future__ import annotations

import numpy as np

from jaxkd.data.examples import UNLABELLED, Examples, without_label
from jaxkd.errors import ConfigError


def permutation(n: int, *key: int) -> np.ndarray:
  """Return an order of 0 .. n-1, a function of n and the non-negative integers of `key` alone.

  Drawn by `RandomState` from a hashed key. NumPy has frozen these streams (NEP 19), so a subset or
  an epoch is the same under every NumPy version; neighbouring keys (seed 0 epoch 1, seed 1 epoch 0)
  are unrelated.

  >>> sorted(permutation(4, 0, 7).tolist())
  [0, 1, 2, 3]
  """
  bits = np.random.MT19937(np.random.SeedSequence(key))
  return np.random.RandomState(bits).permutation(n)


def check_seed(seed: int) -> int:
  """Return `seed` if it is a non-negative integer, else raise a ConfigError."""
  if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
    raise ConfigError(f"seed: expected an integer >= 0, got {seed!r}")
  return int(seed)


def per_class(examples: Examples, n: int, *, seed: int) -> Examples:
  """Return a subset with `n` labelled examples of every class, in their original order.

  Subsets nest: with the same examples and seed, the one of n=10 is part of the one of n=20.

  Raises:
    ConfigError: if n is no positive integer, or naming class and count if a class has fewer.
  """
  if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
    raise ConfigError(f"per_class: expected an integer >= 1, got {n!r}")
  seed = check_seed(seed)
  if examples.labels.ndim > 1:
    raise ConfigError(
      f"per_class={n}: the examples have labels {examples.labels.shape[1:]} each, and no class"
    )
  chosen = []
  for label, members in _classes(examples.labels):
    if label == UNLABELLED:
      continue
    if len(members) < n:
      raise ConfigError(f"per_class={n}: class {label} has only {len(members)} examples")
    chosen.append(members[permutation(len(members), seed, label)[:n]])
  return examples.take(np.sort(np.concatenate(chosen)))


def with_unlabelled(labelled: Examples, split: Examples, count: int, *, seed: int) -> Examples:
  """Return `labelled`, followed by `count` other examples of its split with hidden labels.

  The others are chosen regardless of their classes and keep their original order. Their label is
  UNLABELLED (-1) and their weight in training batches 0, so they do not count in losses and metrics
  that compare with labels. Choices nest: with the same examples and seed, those of count=10 are
  among those of count=20.

  Args:
    labelled: a subset of `split`.
    split: the examples that `labelled` was taken from.
    count: at least 1, at most the number of examples of `split` outside `labelled`.
    seed: seed of the choice.

  Raises:
    ConfigError: if count is out of range, with the number of examples that are left.
  """
  if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
    raise ConfigError(f"unlabelled: expected an integer >= 1, got {count!r}")
  kept = np.flatnonzero(np.isin(split.indices, labelled.indices))
  others = np.flatnonzero(~np.isin(split.indices, labelled.indices))
  if count > len(others):
    raise ConfigError(f"unlabelled={count}: only {len(others)} examples are left")
  # Keys of three numbers are used nowhere else: those of classes and epochs have two.
  order = permutation(len(others), check_seed(seed), 0, 1)
  chosen = np.concatenate([kept, np.sort(others[order[:count]])])
  return split.take(chosen).hide_labels(np.arange(len(kept), len(chosen)))


def split_off(examples: Examples, size: float | int, *, seed: int) -> tuple[Examples, Examples]:
  """Split `examples` in two, stratified by class, both in original order.

  Examples with labels of every position, or of every class, have no class; they are split at
  random. Examples without any label stay in the first part, as they are of no use in a test.

  Args:
    examples: examples to split.
    size: size of the second part: a count (int), or a fraction of those with a label (float in
      0..1).
    seed: seed of the choice, which depends on it and the labels alone.

  Returns:
    (the rest, the part split off). The part has exactly `size` examples, or round(fraction * N),
    of N with a label; each class has its proportional number, rounded down or up.

  Raises:
    ConfigError: if a part would be empty.
  """
  labelled, seed = np.flatnonzero(~without_label(examples)), check_seed(seed)
  total = len(labelled)
  count = round(size * total) if isinstance(size, float) else size
  if isinstance(size, bool) or not 0 < count < total:
    kind = " labelled" if total < len(examples) else ""
    raise ConfigError(
      f"split_off: {size!r} of {total}{kind} examples: expected a fraction strictly between 0 and "
      f"1, or a count in 1..{total - 1}, that leaves no part empty"
    )
  off = np.zeros(len(examples), bool)
  off[labelled] = stratified(examples.labels[labelled], int(count), seed)
  return examples.take(np.flatnonzero(~off)), examples.take(np.flatnonzero(off))


def stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
  """Mark `count` of the labels, (N,) bool, each class in proportion (largest remainders)."""
  classes = list(_classes(labels if labels.ndim == 1 else np.zeros(len(labels), np.int32)))
  shares = np.array([len(members) for _, members in classes]) * count / len(labels)
  counts = np.floor(shares).astype(int)
  # Rounding to 9 digits keeps equal remainders equal, so that ties go to the first class.
  by_remainder = np.argsort(-np.round(shares - counts, 9), kind="stable")
  counts[by_remainder[: count - counts.sum()]] += 1
  marked = np.zeros(len(labels), bool)
  for (label, members), share in zip(classes, counts, strict=True):
    marked[members[permutation(len(members), seed, label)[:share]]] = True
  return marked


def _classes(labels: np.ndarray) -> list[tuple[int, np.ndarray]]:
  return [(int(label), np.flatnonzero(labels == label)) for label in np.unique(labels)]
