"""Golden cases of normalised knowledge distillation."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_cases import Arrays, Case


def nkd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  terms = losses.normalized_distillation(
    Output(logits=arrays["student"]),
    Output(logits=arrays["teacher"]),
    arrays["labels"] if case.has("labels") else arrays["soft_labels"],
    others_weight=case.number("gamma", 1.5),
    temperature=case.number("temp", 1.0),
    without_target=bool(case.number("mask_target", 1)),
  )
  target, others = terms["target"].total, terms["others"].total
  return target + others, {"aux_target_term": target}
