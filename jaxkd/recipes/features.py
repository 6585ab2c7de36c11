"""Recipes of methods that match features: hints, attention, selectivity, flow, relations."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from jaxkd import config, losses
from jaxkd.adapters import regressor_for
from jaxkd.config import choice, flag, number, text
from jaxkd.recipes.method import Method, Pair, Warmup
from jaxkd.recipes.stages import (
  ACTIVATION,
  AUTO,
  chosen_pairs,
  ends_in_relu,
  hint_pair,
  stage_options,
  widths_matched,
)
from jaxkd.schemes import Distillation
from jaxkd.types import Terms


def _fitnets(pair: Pair) -> list[Distillation]:
  stage = hint_pair(pair)
  student, teacher = pair.shapes(stage)
  regressor = regressor_for(
    student, teacher, stage=stage[0], activation=ends_in_relu(pair, stage[1]), **pair.options
  )
  loss = functools.partial(losses.fitnets, stages=(stage,))
  summand = _summand("fitnets", pair, loss, [stage])
  return [dataclasses.replace(summand, connectors={stage[0]: regressor})]


def _attention_transfer(pair: Pair) -> list[Distillation]:
  own, stages = pair.hyperparameters, chosen_pairs(pair)
  loss = functools.partial(
    losses.attention_transfer,
    **stage_options(pair, stages),
    power=own.power,
    norm=own.norm,
    reduce=own.reduce,
    absolute=own.absolute,
  )
  return [_summand("at", pair, loss, stages)]


def _gradient_attention(pair: Pair) -> list[Distillation]:
  own, stages = pair.hyperparameters, chosen_pairs(pair)
  loss = functools.partial(
    losses.gradient_attention_transfer,
    **stage_options(pair, stages),
    norm=own.norm,
    normalize=own.normalize,
    reduce=own.reduce,
  )
  summands = [
    dataclasses.replace(
      _summand("gradient_at", pair, loss, stages),
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
  own, where = pair.hyperparameters, pair.hyperparameters.where
  stages = chosen_pairs(pair, where=where)
  loss = functools.partial(
    losses.neuron_selectivity_transfer,
    **stage_options(pair, stages),
    kernel=own.kernel,
    degree=own.degree,
    offset=own.offset,
    arrays=where,
  )
  return [_summand("nst", pair, loss, stages, where)]


def _flow(pair: Pair) -> list[Distillation]:
  own, stages = pair.hyperparameters, chosen_pairs(pair)
  options = stage_options(pair, stages, flows=True)
  loss = functools.partial(losses.flow_of_solution, **options, pool=own.pool, norm=own.norm)
  summand = _summand("fsp", pair, loss, stages)
  return [dataclasses.replace(summand, connectors=widths_matched(pair, stages))]


def _relational(pair: Pair) -> list[Distillation]:
  own, stages = pair.hyperparameters, chosen_pairs(pair, vectors=True)
  loss = functools.partial(
    losses.relational,
    **stage_options(pair, stages),
    distance_weight=own.distance_weight,
    angle_weight=own.angle_weight,
  )
  return [dataclasses.replace(_summand("rkd", pair, loss, stages), global_batch=True)]


def _summand(
  name: str,
  pair: Pair,
  loss: Callable[..., Terms],
  stages: Sequence[tuple[str, str]],
  where: str = "features",
) -> Distillation:
  """The comparison with the teacher at hand, by the config's weight."""
  weight = pair.share * pair.hyperparameters.weight
  compares = pair.compared(stages, where)
  return Distillation(pair.named(name), loss, weight, pair.at, compares=compares)


def _deepest(pair: Pair) -> str:
  by_stages = "stages" in pair.hyperparameters
  return pair.deepest(chosen_pairs(pair) if by_stages else [hint_pair(pair)])


_STAGES: dict[str, Any] = {
  "stages": config.names((AUTO,)),
  "stage_weights": config.weights(),
}

METHODS = {
  "fitnets": Method(
    "FitNets: one hint through a regressor (Romero et al., 2015)",
    {"stage": text(AUTO), "activation": ACTIVATION, "weight": number(100.0)},
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
    needs="features",
    same_classes="",
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
    needs="maps",
    same_classes="",
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
    # A label is a class of the student's; of other classes the teacher's loss has no meaning.
    same_classes="takes gradients of the teacher's cross-entropy with the student's labels",
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
    needs="maps",
    same_classes="",
  ),
  "fsp": Method(
    "flow of solution procedure (Yim et al., 2017)",
    {
      **_STAGES,
      "stages": config.names(("stem", AUTO)),
      "pool": choice("average", ("average", "max")),
      "norm": choice("mse", ("mse", "columns")),
      "weight": number(50.0),
    },
    _flow,
    # RepDistiller's second stage: labels alone.
    warmup=Warmup(default=True, epochs=30, label_weight=1.0, kd_weight=0.0),
    deepest=_deepest,
    needs="maps",
    same_classes="",
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
    needs="features",
    same_classes="",
  ),
}
