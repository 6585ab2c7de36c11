"""Golden cases of KD-SVD; the teacher's vectors have the signs that the reference's had."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from tests.golden_adapters.case_outputs import stages_of
from tests.golden_cases import Arrays, Case


def kdsvd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  student, teacher = stages_of("student", arrays), stages_of("teacher", arrays)
  stages = list(student.features)
  options: dict[str, Any] = {"count": int(case.number("k", 1)), "layout": "channels"}
  if "mdistiller" in case.word("source"):
    options["layout"] = "columns"
  signs = [case.values.get(f"aux_teacher_v_{stage}") for stage in stages]
  directions = None if any(x is None for x in signs) else [jnp.asarray(x) for x in signs]

  def loss(stages, directions):
    return losses.singular_value_distillation(
      student, teacher, stages=stages, directions=directions, **options
    ).total

  aux = {}
  if directions is not None:
    for i, stage in enumerate(stages):
      _, v = losses.aligned_singular_vectors(
        student.features[stage], teacher.features[stage], directions=directions[i], **options
      )
      aux[f"aux_teacher_s_{stage}"] = s = jnp.linalg.norm(v, axis=1)
      aux[f"aux_teacher_v_{stage}"] = v / s[:, None, :]
    pairs = [(stages[i : i + 2], directions[i : i + 2]) for i in range(len(stages) - 1)]
    aux["aux_pair_losses"] = jnp.stack([loss(*pair) for pair in pairs])
    turned = [-x if i % 2 else x for i, x in enumerate(directions)]
    aux["aux_loss_if_odd_stage_signs_flip"] = loss(stages, turned)
  return loss(stages, directions), aux
