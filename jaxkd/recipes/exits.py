"""Recipes of networks with several exits: be-your-own-teacher, multi-exit distillation."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from jaxkd import config, losses, schemes
from jaxkd.config import choice, flag, number
from jaxkd.models import with_exits
from jaxkd.recipes.method import Method, Pair, Training, sizes
from jaxkd.recipes.objective import ALONE, DISTILLED, check_something_learns
from jaxkd.recipes.pairing import inner_stages
from jaxkd.recipes.stages import AUTO
from jaxkd.schemes import AdaptiveTemperature


def _network(pair: Pair) -> Any:
  """The student if it has exits of its own, else the student with the exits of the config."""
  own = pair.hyperparameters
  if isinstance(pair.student_output, tuple):
    return pair.student
  assert pair.student_output.logits is not None
  return with_exits(
    pair.student,
    pair.student_output,
    _exit_stages(pair),
    kind=own.head,
    num_classes=pair.student_output.logits.shape[-1],
    **pair.options,
  )


def _exit_stages(pair: Pair) -> tuple[str, ...]:
  """The stages of the config; "auto" stands for the inner ones but the last."""
  stages: list[str] = []
  for stage in pair.hyperparameters.exits:
    stages += inner_stages(pair.student_shapes())[:-1] if stage == AUTO else [stage]
  return tuple(stages)


def _training(name: str, pair: Pair, network: Any, **scheme: Any) -> Training:
  """Trains all exits; the deepest stands for the network."""
  return Training(
    name,
    schemes.multi_exit(network, image_shape=pair.image_shape, **scheme),
    learning_rate=pair.hyperparameters.get("learning_rate"),
    reported=f"exit_{network.num_exits - 1}",
    notes=_notes(pair, network),
  )


def _notes(pair: Pair, network: Any) -> tuple[str, ...]:
  if network is pair.student:
    return (f"{network.num_exits} exits of its own",)
  shapes = pair.student_shapes()
  return (f"exits on {', '.join(f'{s} {sizes(shapes[s])}' for s in network.exit_stages)}",)


def _be_your_own_teacher(pair: Pair) -> list[Training]:
  own, network = pair.hyperparameters, _network(pair)
  earlier = own.feature == "masked_squares"
  loss = functools.partial(
    losses.be_your_own_teacher,
    temperature=own.temperature,
    squared_temperature=earlier,
    soft_weight=own.soft_weight,
    feature_weight=own.feature_weight,
    feature=own.feature,
    feature_stage=own.feature_stage,
  )
  shallow = (1.0 - own.soft_weight,) * (network.num_exits - 1)
  deepest = 1.0 - own.soft_weight if earlier else 1.0
  return [
    _training(
      DISTILLED,
      pair,
      network,
      distillation=loss,
      label_weights=(*shallow, deepest),
      # A sum over the batch, or one distance between two whole batches.
      summed=earlier,
      global_batch=not earlier,
    )
  ]


def _multi_exit(pair: Pair) -> list[Training]:
  check_something_learns(pair)
  own, network = pair.hyperparameters, _network(pair)
  options: dict[str, Any] = {"teachers": own.teachers, "average": own.average}
  adaptive = None
  if own.adapt_temperature:
    adaptive = AdaptiveTemperature(own.temperature, own.confidence, own.factor)
  else:
    options["temperature"] = own.temperature
  each = own.scale * own.label_weight
  if own.average == "mean":
    each /= network.num_exits
  loss = functools.partial(losses.multi_exit, **options) if own.weight else None
  return [
    _training(
      DISTILLED,
      pair,
      network,
      distillation=loss,
      label_weights=(each,) * network.num_exits,
      weight=own.scale * own.weight,
      temperature=adaptive,
    )
  ]


def exit_wise(pair: Pair, network: Any) -> Training:
  """A network with exits, each trained by the labels alone, at the student's rate."""
  labels = (1.0,) * network.num_exits
  training = _training(ALONE, pair, network, distillation=None, label_weights=labels)
  return dataclasses.replace(training, learning_rate=None)


# Where a network without exits of its own gets them, and what they are made of.
_EXITS = {"exits": config.names((AUTO,))}
_HEADS = ("linear", "conv", "projected", "bottleneck", "attention")

METHODS = {
  "byot": Method(
    "be your own teacher: the deepest exit teaches the others (Zhang et al., 2019)",
    {
      **_EXITS,
      "head": choice("bottleneck", ("projected", "bottleneck", "attention")),
      # "masked_squares" with the soft targets scaled by T^2 is the earlier published code;
      # "distance" is the authors' later one, with head="attention", soft_weight=0.3 and
      # feature_weight=0.03.
      "feature": choice("masked_squares", ("masked_squares", "distance")),
      # What of an exit is compared with the deepest: its "hint", a map, or a vector after the
      # attention head; or what it pools, as the earlier code does.
      "feature_stage": choice("hint", ("hint", "pooled")),
      "temperature": number(3.0, exclusive=True),
      "soft_weight": number(0.1, maximum=1.0),
      "feature_weight": number(1e-6),
    },
    trainings=_be_your_own_teacher,
    without_teacher=True,
    needs="stages",
  ),
  "multi_exit": Method(
    "multi-exit distillation: later exits teach earlier ones (Phuong & Lampert, 2019)",
    {
      **_EXITS,
      "head": choice("linear", _HEADS),
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
    trainings=_multi_exit,
    without_teacher=True,
    baseline=lambda pair: exit_wise(pair, _network(pair)),
    takes_exits=True,
    needs="stages",
  ),
}
