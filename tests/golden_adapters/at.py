"""Golden cases of attention transfer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from tests.golden_adapters.case_outputs import stages_of
from tests.golden_cases import Arrays, Case


def at(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  options: dict[str, Any] = {"power": case.number("p", 2.0)}
  if "Zoo" in case.word("source"):
    options |= {"absolute": True, "reduce": "sum", "eps": 1e-6, "eps_added": True}
  if case.word("mode") == "paper":
    options |= {"norm": "paper", "reduce": "sum"}
  if case.has("eps"):
    options["eps"] = case.number("eps", 0.0)
  student, teacher = stages_of("student", arrays), stages_of("teacher", arrays)
  per_stage = [
    losses.attention_transfer(student, teacher, stages=[stage], **options).feature
    for stage in student.features
  ]
  terms = losses.attention_transfer(student, teacher, stages=list(student.features), **options)
  return terms.total, {"aux_stage_losses": jnp.stack(per_stage)}
