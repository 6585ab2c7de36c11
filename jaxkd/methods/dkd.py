"""DKD, decoupled knowledge distillation: the target class, and all others, weighted apart."""

from __future__ import annotations

from jaxkd.fields import flag, number
from jaxkd.losses import decoupled_distillation
from jaxkd.methods.base import Method, Setup
from jaxkd.methods.distillation import Distillation, per_label
from jaxkd.methods.ramps import warm_up


def _distillations(setup: Setup) -> list[Distillation]:
  hyperparameters = setup.hyperparameters
  loss = per_label(
    decoupled_distillation,
    what="decoupled distillation",
    target_weight=hyperparameters.target_weight,
    others_weight=hyperparameters.others_weight,
    temperature=hyperparameters.temperature,
    standardize=hyperparameters.standardize,
  )
  weight = warm_up(
    setup.share * hyperparameters.weight,
    epochs=hyperparameters.warmup_epochs,
    steps_per_epoch=setup.steps_per_epoch,
  )
  return [Distillation(setup.named("dkd"), loss, weight, setup.teacher_name)]


METHOD = Method(
  "decoupled knowledge distillation: target and other classes (Zhao et al., 2022)",
  {
    "temperature": number(4.0, exclusive=True),
    # Both sides' logits get mean 0 and deviation 1 first (Sun et al., 2024: temperature 2).
    "standardize": flag(False),
    # alpha and beta of the paper. beta is 8 for most of the published pairs, 2 or 6 for some.
    "target_weight": number(1.0),
    "others_weight": number(8.0),
    # The weight of epoch e, from 1, is multiplied by min(e / warmup_epochs, 1); 0 is no warm-up.
    "warmup_epochs": number(20.0),
    "weight": number(1.0),
  },
  _distillations,
  source="Zhao et al., Decoupled Knowledge Distillation, CVPR 2022",
)
