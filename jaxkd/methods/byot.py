"""BYOT, be your own teacher: the deepest exit of a network teaches the other exits."""

from __future__ import annotations

from jaxkd import losses
from jaxkd.fields import choice, number
from jaxkd.methods._exits import EXITS, exits_phase, network_with_exits, of_exits
from jaxkd.methods._soft_targets import STANDARDIZE
from jaxkd.methods.base import DISTILLED, Method, PhaseSpec, Setup


def _phases(setup: Setup) -> list[PhaseSpec]:
  hyperparameters, network = setup.hyperparameters, network_with_exits(setup)
  earlier = hyperparameters.feature == "masked_squares"
  loss = of_exits(
    losses.be_your_own_teacher,
    # The later form has a distance between two whole batches, or a sum over the batch.
    whole=not earlier,
    temperature=hyperparameters.temperature,
    squared_temperature=earlier,
    soft_weight=hyperparameters.soft_weight,
    feature_weight=hyperparameters.feature_weight,
    feature=hyperparameters.feature,
    feature_stage=hyperparameters.feature_stage,
    standardize=hyperparameters.standardize,
  )
  shallow = (1.0 - hyperparameters.soft_weight,) * (network.num_exits - 1)
  deepest = 1.0 - hyperparameters.soft_weight if earlier else 1.0
  return [
    exits_phase(
      DISTILLED,
      setup,
      network,
      distillation=loss,
      label_weights=(*shallow, deepest),
      summed=earlier,
    )
  ]


METHOD = Method(
  "be your own teacher: the deepest exit teaches the others (Zhang et al., 2019)",
  {
    **EXITS,
    "head": choice("bottleneck", ("projected", "bottleneck", "attention")),
    # "masked_squares" with the soft targets scaled by T^2 is the earlier published code;
    # "distance" is the authors' later one, with head="attention", soft_weight=0.3 and
    # feature_weight=0.03.
    "feature": choice("masked_squares", ("masked_squares", "distance")),
    # Feature of an exit that is compared with the deepest: "hint" (a map, or a vector after the
    # attention head) or "pooled", as in the earlier code.
    "feature_stage": choice("hint", ("hint", "pooled")),
    "temperature": number(3.0, exclusive=True),
    **STANDARDIZE,
    "soft_weight": number(0.1, maximum=1.0),
    "feature_weight": number(1e-6),
  },
  phases=_phases,
  source="Zhang et al., Be Your Own Teacher, ICCV 2019",
  without_teacher=True,
  needs="stages",
)
