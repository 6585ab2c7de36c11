"""Golden cases of similarity-preserving distillation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from tests.golden_adapters.case_outputs import stages_of
from tests.golden_cases import Arrays, Case


def sp(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  student, teacher = stages_of("student", arrays), stages_of("teacher", arrays)
  row_norm = "l1" if case.number("row_norm", 2) == 1 else "l2"

  def loss(stages):
    return losses.similarity_preserving(student, teacher, stages=stages, row_norm=row_norm).total

  stages = list(student.features)
  return loss(stages), {"aux_stage_losses": jnp.stack([loss([stage]) for stage in stages])}
