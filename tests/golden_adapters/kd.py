"""Golden cases of knowledge distillation, of logits as they are and standardised."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_cases import Arrays, Case


def logit_std(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  return kd(case, arrays, standardize=True)


def kd(
  case: Case, arrays: Arrays, *, standardize: bool = False
) -> tuple[jax.Array, dict[str, Any]]:
  torchdistill = "torchdistill" in case.word("source")
  soft, hard = 1.0, 0.0
  squared = bool(case.number("t_squared", 1))
  if case.has("labels") and case.has("alpha"):
    alpha = case.number("alpha", 0.0)
    # alpha is the weight of the soft term in attention-transfer, of the hard one in torchdistill.
    soft, hard = (case.number("beta", 1.0 - alpha), alpha) if torchdistill else (alpha, 1.0 - alpha)
  if torchdistill and hard == 0.0:
    squared = False
    soft = 1.0
  terms = losses.knowledge_distillation(
    Output(logits=arrays["student"]),
    Output(logits=arrays["teacher"]),
    arrays.get("labels"),
    temperature=case.number("T", 4.0),
    squared_temperature=squared,
    soft_weight=soft,
    hard_weight=hard,
    standardize=standardize,
  )
  return terms.total, {}
