"""Recipes of methods that match features: hints, attention, selectivity, flow, relations."""

from __future__ import annotations

import functools
from typing import Any

from jaxkd import config, losses
from jaxkd.config import choice, flag, number, text
from jaxkd.connectors import regressor_for
from jaxkd.recipes.method import Method, Pair, Warmup
from jaxkd.recipes.stages import STAGES, stage_options, stage_pairs, widths_matched
from jaxkd.schemes import Distillation


def _fitnets(pair: Pair) -> list[Distillation]:
  own = pair.hyperparameters
  [stage] = stage_pairs((own.stage,))
  student, teacher = pair.shapes(stage)
  regressor = regressor_for(student, teacher, stage=stage[0], **pair.options)
  loss = functools.partial(losses.fitnets, stages=(stage,))
  connectors = {stage[0]: regressor}
  return [
    Distillation(
      pair.named("fitnets"), loss, pair.share * own.weight, pair.at, connectors=connectors
    )
  ]


def _attention_transfer(pair: Pair) -> list[Distillation]:
  own = pair.hyperparameters
  loss = functools.partial(
    losses.attention_transfer,
    **stage_options(pair),
    power=own.power,
    norm=own.norm,
    reduce=own.reduce,
    absolute=own.absolute,
  )
  return [Distillation(pair.named("at"), loss, pair.share * own.weight, pair.at)]


def _gradient_attention(pair: Pair) -> list[Distillation]:
  own = pair.hyperparameters
  stages = stage_pairs(own.stages)
  for stage in stages:
    if stage != ("images", "images"):
      pair.shapes(stage)
  loss = functools.partial(
    losses.gradient_attention_transfer,
    stages=stages,
    stage_weights=tuple(own.stage_weights) or None,
    norm=own.norm,
    normalize=own.normalize,
    reduce=own.reduce,
  )
  summands = [
    Distillation(
      pair.named("gradient_at"),
      loss,
      pair.share * own.weight,
      pair.at,
      student_gradients=tuple(ours for ours, _ in stages),
      teacher_gradients=tuple(theirs for _, theirs in stages),
    )
  ]
  if own.symmetry_weight and pair.at == "teacher":
    # It asks something of the student alone: once, whatever the number of teachers.
    summands.append(
      Distillation(
        "symmetry",
        lambda student, _: losses.gradient_symmetry(student),
        own.symmetry_weight,
        pair.at,
        student_gradients=("images", "flipped_images"),
      )
    )
  return summands


def _neuron_selectivity(pair: Pair) -> list[Distillation]:
  own = pair.hyperparameters
  loss = functools.partial(
    losses.neuron_selectivity_transfer,
    **stage_options(pair, where=own.where),
    kernel=own.kernel,
    degree=own.degree,
    offset=own.offset,
    where=own.where,
  )
  return [Distillation(pair.named("nst"), loss, pair.share * own.weight, pair.at)]


def _flow(pair: Pair) -> list[Distillation]:
  own = pair.hyperparameters
  loss = functools.partial(
    losses.flow_of_solution, **stage_options(pair, flows=True), pool=own.pool, norm=own.norm
  )
  connectors = widths_matched(pair, stage_pairs(own.stages))
  return [
    Distillation(pair.named("fsp"), loss, pair.share * own.weight, pair.at, connectors=connectors)
  ]


def _relational(pair: Pair) -> list[Distillation]:
  own = pair.hyperparameters
  loss = functools.partial(
    losses.relational,
    **stage_options(pair),
    distance_weight=own.distance_weight,
    angle_weight=own.angle_weight,
  )
  return [
    Distillation(pair.named("rkd"), loss, pair.share * own.weight, pair.at, global_batch=True)
  ]


def _deepest(pair: Pair) -> str:
  own = pair.hyperparameters
  return pair.deepest(stage_pairs(own.stages if "stages" in own else (own.stage,)))


_STAGES: dict[str, Any] = {
  "stages": config.names(STAGES),
  "stage_weights": config.weights(),
}

METHODS = {
  "fitnets": Method(
    "FitNets: one hint through a regressor (Romero et al., 2015)",
    {"stage": text("stage2"), "weight": number(100.0)},
    _fitnets,
    # The paper's second stage: soft targets at T = 3, their weight falling from 4 to 1.
    warmup=Warmup(
      default=False,
      epochs=30,
      label_weight=1.0,
      kd_weight=1.0,
      temperature=3.0,
      squared_temperature=False,
      kd_start=4.0,
    ),
    deepest=_deepest,
  ),
  "at": Method(
    "attention transfer from activations (Zagoruyko and Komodakis, 2017)",
    {
      **_STAGES,
      "power": number(2.0, exclusive=True),
      "norm": choice("code", ("code", "paper")),
      "reduce": choice("mean", ("mean", "sum", "max")),
      "absolute": flag(False),
      "weight": number(1000.0),
    },
    _attention_transfer,
  ),
  "gradient_at": Method(
    "attention transfer from gradients (Zagoruyko and Komodakis, 2017)",
    {
      **_STAGES,
      "stages": config.names(("images",)),
      "norm": choice("l2", ("l2", "mse")),
      "normalize": flag(False),
      "reduce": choice("none", ("none", "abs_mean", "abs_sum", "abs_max")),
      "symmetry_weight": number(0.0),
      "weight": number(1.0),
    },
    _gradient_attention,
  ),
  "nst": Method(
    "neuron selectivity transfer (Huang and Wang, 2017)",
    {
      **_STAGES,
      "kernel": choice("polynomial", ("polynomial", "gaussian", "linear")),
      "degree": config.integer(2, minimum=1),
      "offset": number(0.0),
      "where": choice("features", ("features", "preactivations")),
      "weight": number(50.0),
    },
    _neuron_selectivity,
  ),
  "fsp": Method(
    "flow of solution procedure (Yim et al., 2017)",
    {
      **_STAGES,
      "stages": config.names(("stem", *STAGES)),
      "pool": choice("average", ("average", "max")),
      "norm": choice("mse", ("mse", "columns")),
      "weight": number(50.0),
    },
    _flow,
    # RepDistiller's second stage: labels alone.
    warmup=Warmup(default=True, epochs=30, label_weight=1.0, kd_weight=0.0),
    deepest=_deepest,
  ),
  "rkd": Method(
    "relational knowledge distillation: distances and angles (Park et al., 2019)",
    {
      **_STAGES,
      "stages": config.names(("pooled",)),
      "distance_weight": number(25.0),
      "angle_weight": number(50.0),
      "weight": number(1.0),
    },
    _relational,
  ),
}
