"""Multi-exit distillation: later exits of a network teach earlier exits."""

from __future__ import annotations

from typing import Any

from jaxkd import losses
from jaxkd.errors import ConfigError
from jaxkd.fields import choice, flag, number
from jaxkd.methods._exits import (
  EXITS,
  HEADS,
  AdaptiveTemperature,
  exit_wise,
  exits_phase,
  network_with_exits,
  of_exits,
)
from jaxkd.methods._exits import multi_exit as multi_exit
from jaxkd.methods._soft_targets import STANDARDIZE
from jaxkd.methods.base import DISTILLED, Method, PhaseSpec, Setup, check_something_learns


def _phases(setup: Setup) -> list[PhaseSpec]:
  check_something_learns(setup)
  hyperparameters, network = setup.hyperparameters, network_with_exits(setup)
  options: dict[str, Any] = {
    "teachers": hyperparameters.teachers,
    "average": hyperparameters.average,
    "standardize": hyperparameters.standardize,
  }
  adaptive = None
  if hyperparameters.adapt_temperature:
    if hyperparameters.standardize:
      raise ConfigError(
        "method.standardize=True: expected False with adapt_temperature=True, which follows the "
        "confidence of the logits as they are"
      )
    adaptive = AdaptiveTemperature(
      hyperparameters.temperature, hyperparameters.confidence, hyperparameters.factor
    )
  else:
    options["temperature"] = hyperparameters.temperature
  each = hyperparameters.scale * hyperparameters.label_weight
  if hyperparameters.average == "mean":
    each /= network.num_exits
  loss = of_exits(losses.multi_exit, **options) if hyperparameters.weight else None
  return [
    exits_phase(
      DISTILLED,
      setup,
      network,
      distillation=loss,
      label_weights=(each,) * network.num_exits,
      weight=hyperparameters.scale * hyperparameters.weight,
      temperature=adaptive,
    )
  ]


METHOD = Method(
  "multi-exit distillation: later exits teach earlier ones (Phuong & Lampert, 2019)",
  {
    **EXITS,
    "head": choice("linear", HEADS),
    "teachers": choice("last", ("last", "ensemble", "later")),
    # "sum" adds the exits, as in the published code; "mean" averages over the exits and over the
    # teachers of each, as in the paper.
    "average": choice("sum", ("sum", "mean")),
    "label_weight": number(0.5),
    "weight": number(0.5),
    # Factor on the whole objective; 10 / exits in the published code.
    "scale": number(1.0, exclusive=True),
    "temperature": number(1.0, exclusive=True),
    # Whether it rises by `factor` while the last exit's confidence exceeds `confidence`.
    "adapt_temperature": flag(True),
    # Needs adapt_temperature=False, as standardised logits have a bounded confidence.
    **STANDARDIZE,
    "confidence": number(0.5, maximum=1.0),
    "factor": number(1.05, minimum=1.0),
  },
  phases=_phases,
  source="Phuong and Lampert, Distillation-Based Training for Multi-Exit Architectures, ICCV 2019",
  without_teacher=True,
  baseline=lambda setup: exit_wise(setup, network_with_exits(setup)),
  takes_exits=True,
  needs="stages",
)
