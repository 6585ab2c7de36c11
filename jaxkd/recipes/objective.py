"""From methods to trainings: sums of methods, ramps, several teachers, first stages."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from jaxkd import losses, schemes
from jaxkd.config import Fields, choice, flag, integer, number, weights
from jaxkd.errors import ConfigError
from jaxkd.recipes.method import Method, Pair, Training, Warmup
from jaxkd.schemes import Distillation
from jaxkd.schemes.distillation import Weight
from jaxkd.schemes.ramps import RAMPS, ramp

ALONE = "alone"
WARMUP = "warmup"
DISTILLED = "distilled"


def objective_fields(methods: Mapping[str, Method]) -> Fields:
  """What the objective of one method, or of a sum of them, takes beside the methods' own fields."""
  weight = max(method.label_weight for method in methods.values())
  fields: dict[str, object] = {
    # Objectives differ in scale: 0 takes the rate of the student alone.
    "learning_rate": number(0.0),
  }
  if not any(method.without_teacher for method in methods.values()):
    # Of several teachers, in their order; () weighs them alike.
    fields["teacher_weights"] = weights()
  if all(method.distillations for method in methods.values()):
    fields |= {
      # These are of an objective in one stage.
      "label_weight": number(weight),
      # A factor on every distillation term, from `ramp_start` to 1 in `ramp_epochs`.
      "ramp": choice("none", ("none", *RAMPS)),
      "ramp_epochs": number(0.0),
      "ramp_start": number(0.0),
    }
  if len(methods) == 1:
    [method] = methods.values()
    if method.warmup is not None:
      fields |= _warmup_fields(method.warmup)
  return fields


def _warmup_fields(warmup: Warmup) -> Fields:
  return {
    "two_stage": flag(warmup.default),
    "first_epochs": integer(warmup.epochs, minimum=1),
    # 0 takes the rate of the second stage.
    "first_learning_rate": number(0.0),
    # Of the second stage, which has no term of the method's own.
    "second_label_weight": number(warmup.label_weight),
    "second_kd_weight": number(warmup.kd_weight),
    "second_kd_start": number(warmup.kd_start),
    "second_temperature": number(warmup.temperature, exclusive=True),
    "second_squared_temperature": flag(warmup.squared_temperature),
  }


def trainings(methods: Mapping[str, Method], pair: Pair) -> list[Training]:
  """What a method, or a sum of several, asks for, in order; the last trains the student.

  Args:
    methods: name -> method; several must all have `distillations`.
    pair: whose `hyperparameters` are the whole "method" section.

  Raises:
    ConfigError: naming the field that does not fit.
  """
  if pair.teachers:
    pair = dataclasses.replace(pair, shares=_shares(pair))
  if len(methods) == 1:
    [method] = methods.values()
    if method.trainings is not None:
      return list(method.trainings(pair))
    parts = [(method, pair)]
  else:
    parts = [
      (method, dataclasses.replace(pair, hyperparameters=pair.hyperparameters[name]))
      for name, method in methods.items()
    ]
  before: list[Training] = []
  distillations: list[Distillation] = []
  for method, part in parts:
    assert method.distillations is not None
    for teacher in pair.teachers:
      at_hand = dataclasses.replace(part, at=teacher)
      before += method.before(at_hand) if method.before else []
      distillations += method.distillations(at_hand)
  own = pair.hyperparameters
  _check_used(own)
  learned = any(callable(d.weight) or d.weight for d in distillations)
  if len(parts) == 1 and own.get("two_stage"):
    if not learned:
      raise ConfigError(_NOTHING.format("two_stage=True"))
    return [*before, *_in_two_stages(parts[0][0], pair, distillations, before)]
  if not learned and not own.label_weight:
    raise ConfigError(_NOTHING.format("method.label_weight=0.0"))
  if own.ramp != "none":
    distillations = [_ramped(d, pair) for d in distillations]
  scheme = schemes.offline(pair.student, pair.models, distillations, label_weight=own.label_weight)
  final = Training(
    DISTILLED,
    scheme,
    _inherited(pair, before),
    learning_rate=own.learning_rate,
    notes=_notes(distillations),
  )
  return [*before, final]


_NOTHING = "all weights of the method are 0 with {}: expected one > 0, as nothing is learned"


def _check_used(own: Mapping[str, object]) -> None:
  """Raises a ConfigError for a field that is set and that another one leaves without effect."""
  if own.get("ramp") == "none":
    for field in ("ramp_epochs", "ramp_start"):
      if own[field]:
        raise ConfigError(f"method.{field}={own[field]}: expected 0 with ramp='none'")
  if own.get("two_stage") is False and own["first_learning_rate"]:
    raise ConfigError(
      f"method.first_learning_rate={own['first_learning_rate']}: expected 0 with two_stage=False"
    )


def _in_two_stages(
  method: Method, pair: Pair, distillations: Sequence[Distillation], before: Sequence[Training]
) -> list[Training]:
  """First the layers up to the deepest one matched, by the method; then all, by labels and KD."""
  own = pair.hyperparameters
  assert method.deepest is not None
  if own.ramp != "none":
    raise ConfigError(f"method.ramp={own.ramp!r}: expected 'none' with two_stage=True")
  deepest = method.deepest(pair)
  first = Training(
    WARMUP,
    schemes.offline(
      pair.student,
      pair.models,
      distillations,
      label_weight=0.0,
      to_stage=deepest,
      image_shape=pair.image_shape,
    ),
    _inherited(pair, before),
    epochs=own.first_epochs,
    learning_rate=own.first_learning_rate or own.learning_rate,
    reported="",
    notes=_notes(distillations),
  )
  soft_targets: list[Distillation] = []
  if own.second_kd_weight:
    soft_targets = [_soft_targets(dataclasses.replace(pair, at=name)) for name in pair.teachers]
  elif not own.second_label_weight:
    raise ConfigError(
      "method.second_kd_weight=0.0 and method.second_label_weight=0.0: expected one of them > 0"
    )
  # Without soft targets nobody looks at a teacher any more.
  teachers = pair.models if soft_targets else {}
  second = Training(
    DISTILLED,
    schemes.offline(pair.student, teachers, soft_targets, label_weight=own.second_label_weight),
    {"student": f"{WARMUP}/student", **{name: f"{name}/{name}" for name in teachers}},
    learning_rate=own.learning_rate,
  )
  return [first, second]


def _soft_targets(pair: Pair) -> Distillation:
  """The second stage's summand for the teacher at hand."""
  own = pair.hyperparameters
  loss = functools.partial(
    losses.knowledge_distillation,
    temperature=own.second_temperature,
    squared_temperature=own.second_squared_temperature,
  )
  full = pair.share * own.second_kd_weight
  weight: Weight = full
  if own.second_kd_start != 1.0:
    steps = pair.epochs * pair.steps_per_epoch
    weight = ramp("linear", steps=steps, start=own.second_kd_start * full, end=full)
  return Distillation(pair.named("kd"), loss, weight, pair.at)


def _inherited(pair: Pair, before: Sequence[Training]) -> dict[str, str]:
  """Teachers, and what earlier trainings made for this one."""
  inherit = {name: f"{name}/{name}" for name in pair.teachers}
  for training in before:
    inherit |= {theirs: f"{training.name}/{own}" for theirs, own in training.gives.items()}
  return inherit


def _ramped(distillation: Distillation, pair: Pair) -> Distillation:
  own, weight = pair.hyperparameters, distillation.weight
  if not own.ramp_epochs:
    raise ConfigError(
      f"method.ramp_epochs={own.ramp_epochs}: expected a number > 0 with ramp={own.ramp!r}"
    )
  assert not callable(weight)
  steps = own.ramp_epochs * pair.steps_per_epoch
  rising = ramp(own.ramp, steps=steps, start=own.ramp_start * weight, end=weight)
  return dataclasses.replace(distillation, weight=rising)


def check_something_learns(pair: Pair) -> None:
  """Raises a ConfigError if neither the labels nor what is distilled has a weight."""
  own = pair.hyperparameters
  if not own.weight and not own.label_weight:
    raise ConfigError("method.weight=0.0 and method.label_weight=0.0: expected one of them > 0")


def _notes(distillations: Sequence[Distillation]) -> tuple[str, ...]:
  return tuple(f"{d.name} compares {d.compares}" for d in distillations if d.compares)


def _shares(pair: Pair) -> dict[str, float]:
  """Every teacher's share; they sum to 1."""
  given = tuple(pair.hyperparameters.teacher_weights) or (1.0,) * len(pair.teachers)
  if len(given) != len(pair.teachers):
    raise ConfigError(
      f"method.teacher_weights={given}: expected one for each of {len(pair.teachers)} teachers"
    )
  return {name: w / sum(given) for name, w in zip(pair.teachers, given, strict=True)}
