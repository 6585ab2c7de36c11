"""Golden cases of probabilistic knowledge transfer."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd import losses
from tests.golden_adapters.case_outputs import stages_of
from tests.golden_cases import Arrays, Case


def pkt(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  student, teacher = stages_of("student", arrays), stages_of("teacher", arrays)
  loss = losses.probabilistic_knowledge_transfer
  eps = case.number("eps", 1e-6 if "Zoo" in case.word("source") else 1e-7)
  return loss(student, teacher, stages=list(student.features), eps=eps).total, {}
