"""From methods to phases: sums of methods, ramps, several teachers, a first phase."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from jaxkd import losses
from jaxkd.errors import ConfigError
from jaxkd.fields import Fields, choice, flag, integer, number, weights
from jaxkd.methods.base import DISTILLED, WARMUP, Method, PhaseSpec, Setup, Term, Warmup
from jaxkd.methods.distillation import Distillation, Weight, per_example
from jaxkd.methods.offline import offline
from jaxkd.methods.ramps import RAMPS, ramp


def objective_fields(methods: Mapping[str, Method]) -> Fields:
  """The fields of the objective of one method, or of a sum, beside the methods' own fields."""
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
      # These are of an objective in one phase.
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
    # 0 takes the rate of the second phase.
    "first_learning_rate": number(0.0),
    # Of the second phase, which has no term of the method's own.
    "second_label_weight": number(warmup.label_weight),
    "second_kd_weight": number(warmup.kd_weight),
    "second_kd_start": number(warmup.kd_start),
    "second_temperature": number(warmup.temperature, exclusive=True),
    "second_squared_temperature": flag(warmup.squared_temperature),
  }


def phases_of(methods: Mapping[str, Method], setup: Setup) -> list[PhaseSpec]:
  """The phases of a method, or of a sum of several, in order; the last trains the student.

  Args:
    methods: name -> method; several must all have `distillations`.
    setup: its `hyperparameters` are the whole "method" section.

  Raises:
    ConfigError: naming the field that does not fit.
  """
  if setup.teachers:
    setup = dataclasses.replace(setup, shares=_shares(setup))
  if len(methods) == 1:
    [method] = methods.values()
    if method.phases is not None:
      return list(method.phases(setup))
    parts = [(method, setup)]
  else:
    parts = [
      (method, dataclasses.replace(setup, hyperparameters=setup.hyperparameters[name]))
      for name, method in methods.items()
    ]
  before: list[PhaseSpec] = []
  terms: list[Term] = []
  for method, part in parts:
    assert method.distillations is not None
    for teacher in setup.teachers:
      chosen = part.for_teacher(teacher)
      before += method.before(chosen) if method.before else []
      found = method.distillations(chosen)
      terms += [term if isinstance(term, Term) else Term(term) for term in found]
  own = setup.hyperparameters
  _check_used(own)
  learned = any(callable(t.distillation.weight) or t.distillation.weight for t in terms)
  if len(parts) == 1 and own.get("two_stage"):
    if not learned:
      raise ConfigError(_NOTHING.format("two_stage=True"))
    return [*before, *_in_two_phases(parts[0][0], setup, terms, before)]
  if not learned and not own.label_weight:
    raise ConfigError(_NOTHING.format("method.label_weight=0.0"))
  distillations = [t.distillation for t in terms]
  if own.ramp != "none":
    distillations = [_ramped(d, setup) for d in distillations]
  scheme = offline(setup.student, setup.models, distillations, label_weight=own.label_weight)
  final = PhaseSpec(
    DISTILLED,
    scheme,
    _inherited(setup, before),
    learning_rate=own.learning_rate,
    notes=_notes(terms),
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


def _in_two_phases(
  method: Method, setup: Setup, terms: Sequence[Term], before: Sequence[PhaseSpec]
) -> list[PhaseSpec]:
  """First the layers up to the deepest stage matched, by the method; then all, by labels and KD."""
  own = setup.hyperparameters
  assert method.deepest is not None
  if own.ramp != "none":
    raise ConfigError(f"method.ramp={own.ramp!r}: expected 'none' with two_stage=True")
  first = PhaseSpec(
    WARMUP,
    offline(
      setup.student,
      setup.models,
      [t.distillation for t in terms],
      label_weight=0.0,
      to_stage=method.deepest(setup),
      image_shape=setup.image_shape,
    ),
    _inherited(setup, before),
    epochs=own.first_epochs,
    learning_rate=own.first_learning_rate or own.learning_rate,
    reported="",
    notes=_notes(terms),
    role="",
  )
  soft_targets: list[Distillation] = []
  if own.second_kd_weight:
    soft_targets = [_soft_targets(setup.for_teacher(name)) for name in setup.teachers]
  elif not own.second_label_weight:
    raise ConfigError(
      "method.second_kd_weight=0.0 and method.second_label_weight=0.0: expected one of them > 0"
    )
  # Without soft targets the second phase has no teacher.
  teachers = setup.models if soft_targets else {}
  second = PhaseSpec(
    DISTILLED,
    offline(setup.student, teachers, soft_targets, label_weight=own.second_label_weight),
    {"student": f"{WARMUP}/student", **{name: f"{name}/{name}" for name in teachers}},
    learning_rate=own.learning_rate,
  )
  return [first, second]


def _soft_targets(setup: Setup) -> Distillation:
  """The term of the second phase for one teacher."""
  own = setup.hyperparameters
  loss = per_example(
    losses.knowledge_distillation,
    temperature=own.second_temperature,
    squared_temperature=own.second_squared_temperature,
  )
  full = setup.share * own.second_kd_weight
  weight: Weight = full
  if own.second_kd_start != 1.0:
    steps = setup.epochs * setup.steps_per_epoch
    weight = ramp("linear", steps=steps, start=own.second_kd_start * full, end=full)
  return Distillation(setup.named("kd"), loss, weight, setup.teacher_name)


def _inherited(setup: Setup, before: Sequence[PhaseSpec]) -> dict[str, str]:
  """Teachers, and the participants that earlier phases made for this one."""
  inherit = {name: f"{name}/{name}" for name in setup.teachers}
  for phase in before:
    inherit |= {theirs: f"{phase.name}/{own}" for theirs, own in phase.gives.items()}
  return inherit


def _ramped(distillation: Distillation, setup: Setup) -> Distillation:
  own, weight = setup.hyperparameters, distillation.weight
  if not own.ramp_epochs:
    raise ConfigError(
      f"method.ramp_epochs={own.ramp_epochs}: expected a number > 0 with ramp={own.ramp!r}"
    )
  assert not callable(weight)
  steps = own.ramp_epochs * setup.steps_per_epoch
  rising = ramp(own.ramp, steps=steps, start=own.ramp_start * weight, end=weight)
  return dataclasses.replace(distillation, weight=rising)


def _notes(terms: Sequence[Term]) -> tuple[str, ...]:
  return tuple(f"{t.distillation.name} compares {t.compares}" for t in terms if t.compares)


def _shares(setup: Setup) -> dict[str, float]:
  """Every teacher's share; they sum to 1."""
  given = tuple(setup.hyperparameters.teacher_weights) or (1.0,) * len(setup.teachers)
  if len(given) != len(setup.teachers):
    raise ConfigError(
      f"method.teacher_weights={given}: expected one for each of {len(setup.teachers)} teachers"
    )
  return {name: w / sum(given) for name, w in zip(setup.teachers, given, strict=True)}
