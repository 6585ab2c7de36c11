"""Golden cases of neuron selectivity transfer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from tests.golden_adapters.case_outputs import stages_of
from tests.golden_cases import Arrays, Case


def nst(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  student, teacher = stages_of("student", arrays), stages_of("teacher", arrays)
  stages = list(student.features)
  per_stage = [
    losses.neuron_selectivity_transfer(student, teacher, stages=[stage]).feature for stage in stages
  ]
  terms = losses.neuron_selectivity_transfer(student, teacher, stages=stages)
  return terms.total, {"aux_stage_losses": jnp.stack(per_stage)}
