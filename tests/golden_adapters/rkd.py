"""Golden cases of relational knowledge distillation."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd import losses
from tests.golden_adapters.case_outputs import stages_of
from tests.golden_cases import Arrays, Case


def rkd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  student, teacher = stages_of("student", arrays), stages_of("teacher", arrays)
  function = case.word("source").lower()
  # The authors' code has one function per term.
  alone = {"distance": ("rkddistance", 1.0, 0.0), "angle": ("rkdangle", 0.0, 1.0)}
  weights = next(((d, a) for name, d, a in alone.values() if name in function), (25.0, 50.0))
  terms = losses.relational(
    student,
    teacher,
    stages=list(student.features),
    distance_weight=case.number("w_d", weights[0]),
    angle_weight=case.number("w_a", weights[1]),
    squared=bool(case.number("squared", 0)),
    reduction=case.word("reduction") or "mean",
  )
  return terms.total, {}
