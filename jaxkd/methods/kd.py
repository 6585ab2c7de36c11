"""KD, knowledge distillation: softened logits."""

from __future__ import annotations

from jaxkd.fields import choice, number
from jaxkd.methods._soft_targets import soft_targets
from jaxkd.methods.base import Method, Setup
from jaxkd.methods.distillation import Distillation


def _distillations(setup: Setup) -> list[Distillation]:
  hyperparameters = setup.hyperparameters
  loss = soft_targets(temperature=hyperparameters.temperature)
  if hyperparameters.combine == "losses":
    weight = setup.share * hyperparameters.weight
    return [Distillation(setup.named("kd"), loss, weight, setup.teacher_name)]
  # One target for all teachers: one term.
  return [Distillation("kd", loss, hyperparameters.weight, setup.shares)] if setup.is_first else []


METHOD = Method(
  "knowledge distillation: softened logits (Hinton et al., 2015)",
  {
    "temperature": number(4.0, exclusive=True),
    # For several teachers: the mean of the losses, or the loss of their mean logits.
    "combine": choice("losses", ("losses", "logits")),
    "weight": number(0.9),
  },
  _distillations,
  source="Hinton et al., Distilling the Knowledge in a Neural Network, 2015",
  label_weight=0.1,
  multi_label=True,
)
