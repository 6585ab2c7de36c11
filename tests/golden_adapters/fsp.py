"""Golden cases of FSP, the flow of solution procedure."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from tests.golden_adapters.case_outputs import stages_of
from tests.golden_cases import Arrays, Case


def fsp(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  options: dict[str, Any] = {}
  if "torchdistill" in case.word("source"):
    options = {"pool": "max", "norm": "columns"}
  student, teacher = stages_of("student", arrays), stages_of("teacher", arrays)
  stages = list(student.features)
  per_flow = [
    losses.flow_of_solution(student, teacher, stages=pair, **options).feature
    for pair in itertools.pairwise(stages)
  ]
  terms = losses.flow_of_solution(student, teacher, stages=stages, **options)
  return terms.total, {"aux_stage_losses": jnp.stack(per_flow)}
