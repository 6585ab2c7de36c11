"""Golden cases of scale-decoupled distillation (SDD), from logits of regions and from maps."""

from __future__ import annotations

import ast
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.losses._targets import target_classes
from jaxkd.losses.sdd import region_weights
from jaxkd.methods.sdd import regions
from jaxkd.types import Output
from tests.golden_cases import Arrays, Case


def sdd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  labels = arrays["labels"]
  if case.number("from_features", 0):
    student, teacher = (_from_maps(case, arrays, side) for side in ("student", "teacher"))
  else:
    # (B, C, N) -> (B, N, C)
    student, teacher = (jnp.swapaxes(arrays[side], 1, 2) for side in ("student", "teacher"))
  terms = losses.scale_decoupled(
    Output(logits=student),
    Output(logits=teacher),
    labels,
    form=case.word("variant"),
    temperature=case.number("T", 4.0),
    target_weight=case.number("alpha", 1.0),
    others_weight=case.number("beta", 8.0),
    gamma=case.number("gamma", 1.5),
    mask_target=bool(case.number("mask_target", 0)),
  )
  every = jnp.broadcast_to(labels[:, None], student.shape[:-1])
  weights = region_weights(teacher, target_classes("sdd", teacher, every), 2.0)
  return terms.total, {
    "aux_weights": weights,
    "aux_student_logits": jnp.swapaxes(student, 1, 2),
    "aux_teacher_logits": jnp.swapaxes(teacher, 1, 2),
  }


def _from_maps(case: Case, arrays: Arrays, side: str) -> jax.Array:
  maps, kernel = arrays[f"{side}_feature"], arrays[f"{side}_fc_kernel"]
  found = []
  for cells in regions(maps, ast.literal_eval(case.word("M"))):
    logits = jnp.mean(cells, axis=(1, 2)) @ kernel + arrays[f"{side}_fc_bias"][None]
    found.append(logits.reshape(len(maps), -1, logits.shape[-1]))
  return jnp.concatenate(found, axis=1)
