"""Fidelity of a student to its teacher: agreement and divergence of predictions."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxkd.evaluate._predictions import checked, checked_logits, log_softmax, same_shape


def image_fidelity(logits: Any, teacher_logits: Any) -> dict[str, np.ndarray]:
  """Compute the fidelity on every image.

    agreement: 1 if both predict the same class
    kl: KL(teacher || student) of the probabilities at temperature 1, in nats

  Args:
    logits: (N, C) of the student, finite.
    teacher_logits: likewise.

  Returns:
    Quantity -> (N,) float64.

  Raises:
    ConfigError: for other shapes, no examples, and logits that are not finite.

  Source: Stanton et al., "Does Knowledge Distillation Really Work?", NeurIPS 2021, eq. 3 and 4.

  >>> found = image_fidelity([[0.0, 0.0]], [[0.0, 0.0]])
  >>> found["agreement"].tolist(), found["kl"].tolist()
  ([1.0], [0.0])
  """
  student = checked_logits("logits", logits)
  teacher = same_shape("teacher_logits", teacher_logits, "logits", student)
  ours, theirs = log_softmax(student), log_softmax(teacher)
  return {
    "agreement": (student.argmax(axis=1) == teacher.argmax(axis=1)).astype(np.float64),
    # Rounding makes the sum of equal distributions a little negative.
    "kl": np.maximum((np.exp(theirs) * (theirs - ours)).sum(axis=1), 0.0),
  }


def agreement_where_wrong(logits: Any, teacher_logits: Any, labels: Any) -> tuple[float, int]:
  """Compute the share of the teacher's wrong predictions that the student repeats.

  Where the teacher is right, agreement is accuracy. A student that learned from the labels alone
  repeats some of the teacher's errors, too; the difference to it is what was transferred.

  Args:
    logits: (N, C) of the student, finite.
    teacher_logits: likewise.
    labels: class numbers (N,).

  Returns:
    The share, NaN if the teacher is always right; the number of images on which it is wrong.

  Raises:
    ConfigError: as `image_fidelity`; for labels that are no class.

  >>> agreement_where_wrong([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], [1, 1])
  (0.5, 2)
  """
  teacher, classes = checked("teacher_logits", teacher_logits, labels)
  wrong = teacher.argmax(axis=1) != classes
  same = image_fidelity(logits, teacher)["agreement"][wrong]
  return (float(same.mean()) if len(same) else float("nan")), len(same)
