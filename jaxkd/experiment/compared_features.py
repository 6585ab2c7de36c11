"""Features of a student beside its teacher's: CKA by stage, and attention maps of single images."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from jaxkd import evaluate
from jaxkd.evaluate.student_report import number_or_none
from jaxkd.experiment.predictions import Predictor, compared_examples, features
from jaxkd.losses import attention_map

# Examples from which CKA is computed at least: its unbiased estimate needs 4.
_LEAST = 4
# Least side of the attention maps that are shown, where a network has larger ones.
_SIDE = 4


@dataclasses.dataclass(frozen=True)
class Compared:
  """Features of two networks.

  Attributes:
    cka: {"examples", "student": stages, "teacher": stages, "values": rows of the student's stages},
      None where a network has no features or there is no teacher.
    images: (n, H, W, C) uint8 images as stored, None for other inputs.
    maps: "student" and "teacher" -> (stage, attention maps (n, H, W)), of one stage each.
  """

  cka: dict[str, Any] | None
  images: np.ndarray | None
  maps: dict[str, tuple[str, np.ndarray]]


def compared(student: Predictor, teacher: Predictor | None, numbers: np.ndarray) -> Compared:
  """Compare the features of a student and of its teacher.

  Args:
    student: the student.
    teacher: its teacher, or None.
    numbers: test examples whose images and attention maps are shown.
  """
  dataset = student.dataset
  images = dataset.test.fetch(numbers) if dataset.image_shape and len(numbers) else None
  maps: dict[str, tuple[str, np.ndarray]] = {}
  if images is not None:
    for name, subject in (("student", student), ("teacher", teacher)):
      found = features(subject, images) if subject is not None else {}
      stages = {stage: maps_of(value) for stage, value in found.items()}
      if stage := _shown_stage(stages):
        maps[name] = stage, np.asarray(attention_map(stages[stage]))
  return Compared(_cka(student, teacher) if teacher is not None else None, images, maps)


def maps_of(value: np.ndarray) -> np.ndarray:
  """Return tokens of square images as maps, and other features as they are.

  Args:
    value: features; (N, T, C) becomes (N, H, H, C) if H * H tokens follow the class token and the
      distillation token, or one or none of them.

  >>> maps_of(np.zeros((2, 17, 8))).shape, maps_of(np.zeros((2, 8))).shape
  ((2, 4, 4, 8), (2, 8))
  """
  if value.ndim != 3:
    return value
  for extra in range(3):
    side = math.isqrt(max(value.shape[1] - extra, 0))
    if side > 1 and side * side == value.shape[1] - extra:
      return value[:, extra:].reshape(len(value), side, side, value.shape[2])
  return value


def _shown_stage(stages: dict[str, np.ndarray]) -> str:
  """Return the last stage with maps of at least 4x4 positions, else the last one with maps."""
  of_maps = [stage for stage, value in stages.items() if value.ndim == 4]
  large = [stage for stage in of_maps if min(stages[stage].shape[1:3]) >= _SIDE]
  return ["", *of_maps, *large][-1]


def _cka(student: Predictor, teacher: Predictor) -> dict[str, Any] | None:
  examples = student.dataset.test
  chosen = min((compared_examples(side, examples) for side in (student, teacher)), key=len)
  if len(chosen) < _LEAST:
    return None
  inputs = examples.fetch(chosen)
  ours, theirs = features(student, inputs), features(teacher, inputs)
  if not ours or not theirs:
    return None
  found = evaluate.cka_matrix(list(ours.values()), list(theirs.values()))
  return {
    "examples": len(chosen),
    "student": list(ours),
    "teacher": list(theirs),
    "values": [[number_or_none(value) for value in row] for row in found],
  }
