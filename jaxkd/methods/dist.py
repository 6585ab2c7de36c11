"""DIST: correlations of predictions within each example, and within each class of the batch."""

from __future__ import annotations

from jaxkd.fields import flag, number
from jaxkd.losses import stronger_teacher
from jaxkd.methods.base import Method, Setup
from jaxkd.methods.distillation import Distillation, whole_batch


def _distillations(setup: Setup) -> list[Distillation]:
  hyperparameters = setup.hyperparameters
  loss = whole_batch(
    stronger_teacher,
    inter_weight=hyperparameters.inter_weight,
    intra_weight=hyperparameters.intra_weight,
    temperature=hyperparameters.temperature,
    standardize=hyperparameters.standardize,
  )
  weight = setup.share * hyperparameters.weight
  return [Distillation(setup.named("dist"), loss, weight, setup.teacher_name)]


METHOD = Method(
  "correlations of predictions within examples and classes: DIST (Huang et al., 2022)",
  {
    # 4 on CIFAR-100, 1 on ImageNet.
    "temperature": number(4.0, exclusive=True),
    "standardize": flag(False),
    # beta and gamma of the paper.
    "inter_weight": number(1.0),
    "intra_weight": number(1.0),
    "weight": number(2.0),
  },
  _distillations,
  source="Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022",
)
