"""Golden cases of activation boundaries."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from tests.golden_adapters.case_outputs import stages_of
from tests.golden_cases import Arrays, Case


def ab(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  student, teacher = stages_of("student", arrays), stages_of("teacher", arrays)
  stages = list(student.features)
  source = case.word("source")
  options: dict[str, Any] = {"margin": case.number("margin", 1.0), "arrays": "features"}
  weights = [2.0 ** (i - len(stages) + 1) for i in range(len(stages))]
  if "RepDistiller" not in source:
    # Bare criteria: stage weights and scale are in the authors' trainer, not in the loss.
    weights = [1.0] * len(stages)
    reductions = {"torchdistill": "batch", "Zoo": "mean"}
    reduction = next((value for name, value in reductions.items() if name in source), "sum")
    options |= {"stage_weights": weights, "scale": 1.0, "reduction": reduction}
  terms = losses.activation_boundaries(student, teacher, stages=stages, **options)
  per_stage = [
    losses.activation_boundaries(
      student, teacher, stages=[stage], **{**options, "stage_weights": [weight]}
    ).feature
    for stage, weight in zip(stages, weights, strict=True)
  ]
  return terms.total, {"aux_stage_losses": jnp.stack(per_stage)}
