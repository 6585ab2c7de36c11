"""Checks of logits and labels on the host; probabilities and ranks."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxkd.errors import ConfigError


def checked_logits(what: str, logits: Any) -> np.ndarray:
  """Return logits (N, C) as float64.

  Args:
    what: name of the argument, for messages.
    logits: array.

  Raises:
    ConfigError: unless they are (N, C) with N, C >= 1, and finite.
  """
  found = np.asarray(logits)
  if found.ndim != 2 or 0 in found.shape:
    raise ConfigError(f"{what}: shape {found.shape}, expected (examples, classes), at least one")
  found = found.astype(np.float64)
  if not np.isfinite(found).all():
    rows = np.flatnonzero(~np.isfinite(found).all(axis=1))
    raise ConfigError(
      f"{what}: not finite for {len(rows)} of {len(found)} examples, the first is number {rows[0]}"
    )
  return found


def checked(what: str, logits: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
  """Return logits (N, C) as float64 and labels (N,) as int64.

  Args:
    what: name of the logits, for messages.
    logits: array.
    labels: class numbers.

  Raises:
    ConfigError: as `checked_logits`; or unless the labels are N integers of 0..C-1.
  """
  scores, classes = checked_logits(what, logits), np.asarray(labels)
  if classes.shape != scores.shape[:1]:
    raise ConfigError(f"labels: shape {classes.shape}, expected ({len(scores)},) as {what} have")
  if not np.issubdtype(classes.dtype, np.integer):
    raise ConfigError(f"labels: type {classes.dtype}, expected integers, one class per example")
  classes = classes.astype(np.int64)
  wrong = (classes < 0) | (classes >= scores.shape[1])
  if wrong.any():
    raise ConfigError(
      f"labels: {classes[wrong][0]} is no class: {what} have classes 0 to {scores.shape[1] - 1}"
    )
  return scores, classes


def same_shape(what: str, logits: Any, other: str, like: np.ndarray) -> np.ndarray:
  """Return logits as float64; raise a ConfigError unless they have the shape of other ones."""
  found = checked_logits(what, logits)
  if found.shape != like.shape:
    unit = "classes" if len(found) == len(like) else "examples"
    ours, theirs = (x.shape[unit == "classes"] for x in (found, like))
    raise ConfigError(f"{what}: {ours} {unit}, expected {theirs} as {other} have")
  return found


def log_softmax(logits: np.ndarray) -> np.ndarray:
  """Return the logarithms of the probabilities, over the last axis."""
  shifted = logits - logits.max(axis=-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Return the number of classes ahead of the label, (N,); equal logits rank by class number."""
  own = np.take_along_axis(logits, labels[:, None], axis=1)
  earlier = np.arange(logits.shape[1])[None] < labels[:, None]
  return ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
