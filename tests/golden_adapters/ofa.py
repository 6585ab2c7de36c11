"""Golden cases of one-for-all distillation."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_cases import Arrays, Case


def ofa(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  count = int(case.number("n_stages", 0))
  student = Output(logits=arrays["student"])
  parts = losses.one_for_all(
    [*(Output(logits=arrays[f"stage_{i}"]) for i in range(count)), student],
    Output(logits=arrays["teacher"]),
    arrays["labels"],
    exponent=case.number("eps", 1.0),
    stage_exponents=[float(x) for x in case.values["stage_eps"]] if count else None,
    temperature=case.number("temperature", 1.0),
  )
  aux = {
    "aux_loss_gt": case.number("gt_weight", 0.0)
    * losses.cross_entropy(arrays["student"], arrays["labels"]),
    "aux_loss_kd": case.number("kd_weight", 1.0) * parts["logits"].logit,
    "aux_loss_ofa": case.number("ofa_weight", 0.0) * parts["stages"].logit,
  }
  return sum(aux.values()), aux
