"""How far a student's features lie from its teacher's."""

from __future__ import annotations

import numpy as np

from jaxkd.errors import ConfigError


def feature_distances(student: np.ndarray, teacher: np.ndarray) -> dict[str, np.ndarray]:
  """Two distances of every example's feature: by direction, and by length.

    cosine: 1 - s.t / (|s| |t|), from 0 to 2
    l2: |s - t| / |t|

  A zero vector has no direction, and is no unit of length. Where it is the only one of the two, the
  cosine distance is 1, and if it is the teacher's, so is the other; two zero vectors are equal: 0.

  Args:
    student: (N, C), of SimKD as the projector leaves them. Maps are to be flattened, or pooled.
    teacher: (N, C), of the same examples.

  Returns:
    {"cosine": (N,), "l2": (N,)}, float64.

  Raises:
    ConfigError: if either is not (N, C), or the shapes differ.

  >>> found = feature_distances(np.array([[3.0, 0.0]]), np.array([[0.0, 4.0]]))
  >>> found["cosine"].tolist(), found["l2"].tolist()
  ([1.0], [1.25])
  """
  ours, theirs = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
  if ours.ndim != 2:
    raise ConfigError(f"student: shape {ours.shape}, expected (examples, channels)")
  if theirs.shape != ours.shape:
    raise ConfigError(f"teacher: shape {theirs.shape}, expected {ours.shape} as student has")
  our_length, length = (np.linalg.norm(x, axis=1) for x in (ours, theirs))
  apart = np.linalg.norm(ours - theirs, axis=1)
  ours_is_zero, is_zero = our_length == 0, length == 0
  # Half the squared distance of the unit vectors: of nearly equal ones, 1 - cosine rounds away.
  directions = ours / np.where(ours_is_zero, 1, our_length)[:, None]
  directions -= theirs / np.where(is_zero, 1, length)[:, None]
  cosine = np.sum(directions**2, axis=1) / 2
  return {
    "cosine": np.where(ours_is_zero | is_zero, ours_is_zero != is_zero, cosine),
    "l2": np.where(is_zero, ~ours_is_zero, apart / np.where(is_zero, 1, length)),
  }
