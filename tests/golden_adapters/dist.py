"""Golden cases of DIST."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_cases import Arrays, Case


def dist(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  # torchdistill bounds each norm by eps, which has no effect on norms above it.
  torchdistill = "torchdistill" in case.word("source")
  terms = losses.stronger_teacher(
    Output(logits=arrays["student"]),
    Output(logits=arrays["teacher"]),
    inter_weight=case.number("beta", 1.0),
    intra_weight=case.number("gamma", 1.0),
    temperature=case.number("tau", 1.0),
    eps=0.0 if torchdistill else case.number("eps", 1e-8),
  )
  return terms["inter"].total + terms["intra"].total, {}
