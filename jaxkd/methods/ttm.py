"""TTM, transformed teacher matching: a temperature on the teacher's side alone."""

from __future__ import annotations

from jaxkd.fields import flag, number
from jaxkd.losses import transformed_teacher_matching
from jaxkd.methods.base import Method, Setup
from jaxkd.methods.distillation import Distillation, per_example


def _distillations(setup: Setup) -> list[Distillation]:
  hyperparameters = setup.hyperparameters
  loss = per_example(
    transformed_teacher_matching,
    exponent=hyperparameters.exponent,
    standardize=hyperparameters.standardize,
  )
  weight = setup.share * hyperparameters.weight
  return [Distillation(setup.named("ttm"), loss, weight, setup.teacher_name)]


METHOD = Method(
  "transformed teacher matching: powers of the teacher's probabilities (Zheng and Yang, 2024)",
  {
    # 1 / exponent is the teacher's temperature.
    "exponent": number(0.1, exclusive=True),
    "standardize": flag(False),
    "weight": number(45.0),
  },
  _distillations,
  source="Zheng and Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024",
)
