"""Golden cases of decoupled knowledge distillation."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_cases import Arrays, Case


def dkd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  alpha, beta = case.number("alpha", 1.0), case.number("beta", 8.0)

  def terms(target_weight: float, others_weight: float) -> dict[str, jax.Array]:
    found = losses.decoupled_distillation(
      Output(logits=arrays["student"]),
      Output(logits=arrays["teacher"]),
      arrays["labels"],
      target_weight=target_weight,
      others_weight=others_weight,
      temperature=case.number("T", 4.0),
      standardize=bool(case.number("logit_stand", 0)),
    )
    return {name: part.total for name, part in found.items()}

  weighted, plain = terms(alpha, beta), terms(1.0, 1.0)
  aux = {"aux_tckd": plain["target"], "aux_nckd": plain["others"]}
  return sum(weighted.values()), aux
