"""Multi-exit distillation: later exits of a network teach earlier ones."""

from __future__ import annotations

from typing import Any

from jaxkd import losses
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
from jaxkd.methods.base import DISTILLED, Method, PhaseSpec, Setup, check_something_learns


def _phases(setup: Setup) -> list[PhaseSpec]:
  check_something_learns(setup)
  own, network = setup.hyperparameters, network_with_exits(setup)
  options: dict[str, Any] = {"teachers": own.teachers, "average": own.average}
  adaptive = None
  if own.adapt_temperature:
    adaptive = AdaptiveTemperature(own.temperature, own.confidence, own.factor)
  else:
    options["temperature"] = own.temperature
  each = own.scale * own.label_weight
  if own.average == "mean":
    each /= network.num_exits
  loss = of_exits(losses.multi_exit, **options) if own.weight else None
  return [
    exits_phase(
      DISTILLED,
      setup,
      network,
      distillation=loss,
      label_weights=(each,) * network.num_exits,
      weight=own.scale * own.weight,
      temperature=adaptive,
    )
  ]


METHOD = Method(
  "multi-exit distillation: later exits teach earlier ones (Phuong & Lampert, 2019)",
  {
    **EXITS,
    "head": choice("linear", HEADS),
    "teachers": choice("last", ("last", "ensemble", "later")),
    # "sum" adds up the exits, as the published code; "mean" is the average over the exits and
    # over each one's teachers, as the paper writes it.
    "average": choice("sum", ("sum", "mean")),
    "label_weight": number(0.5),
    "weight": number(0.5),
    # On the whole objective; the published code has 10 / exits.
    "scale": number(1.0, exclusive=True),
    "temperature": number(1.0, exclusive=True),
    # Whether it rises by `factor` while the last exit is surer than `confidence`.
    "adapt_temperature": flag(True),
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
