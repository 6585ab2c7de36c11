"""NKD, normalised knowledge distillation: the target class, and the others normalised."""

from __future__ import annotations

from jaxkd.fields import flag, number
from jaxkd.losses import normalized_distillation
from jaxkd.methods.base import Method, Setup
from jaxkd.methods.distillation import Distillation, per_label


def _distillations(setup: Setup) -> list[Distillation]:
  hyperparameters = setup.hyperparameters
  loss = per_label(
    normalized_distillation,
    what="normalised distillation",
    others_weight=hyperparameters.others_weight,
    temperature=hyperparameters.temperature,
    standardize=hyperparameters.standardize,
    without_target=hyperparameters.without_target,
  )
  weight = setup.share * hyperparameters.weight
  return [Distillation(setup.named("nkd"), loss, weight, setup.teacher_name)]


METHOD = Method(
  "normalised knowledge distillation: the target and the other classes (Yang et al., 2023)",
  {
    # Of the other classes alone. 3 and 3.5 on CIFAR-100, 1 and 1.5 on ImageNet.
    "temperature": number(3.0, exclusive=True),
    "others_weight": number(3.5),
    "standardize": flag(False),
    # False leaves the target among the other classes, as in SDD's code.
    "without_target": flag(True),
    "weight": number(1.0),
  },
  _distillations,
  source="Yang et al., From Knowledge Distillation to Self-Knowledge Distillation, ICCV 2023",
)
