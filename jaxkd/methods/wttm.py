"""WTTM, weighted transformed teacher matching: uncertain examples of the teacher weigh more."""

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
    weighted=True,
    standardize=hyperparameters.standardize,
  )
  weight = setup.share * hyperparameters.weight
  return [Distillation(setup.named("wttm"), loss, weight, setup.teacher_name)]


METHOD = Method(
  "transformed teacher matching, weighted by the teacher's power sums (Zheng and Yang, 2024)",
  {
    "exponent": number(0.2, exclusive=True),
    "standardize": flag(False),
    # That of the published recipe, in which WTTM is added to CRD.
    "weight": number(4.0),
  },
  _distillations,
  source="Zheng and Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024",
)
