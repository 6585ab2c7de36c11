"""The phases of a method or a sum of methods, with ramps, several teachers, and a first phase."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from jaxkd.errors import ConfigError
from jaxkd.fields import Fields, any_names, choice, flag, integer, number, weights
from jaxkd.methods._assistants import through_assistants
from jaxkd.methods._soft_targets import soft_targets
from jaxkd.methods.base import DISTILLED, WARMUP, Method, PhaseSpec, Setup, Term, Warmup
from jaxkd.methods.distillation import Distillation, Weight
from jaxkd.methods.offline import offline
from jaxkd.methods.ramps import RAMPS, ramp


def objective_fields(methods: Mapping[str, Method]) -> Fields:
  """Return the fields of the objective of one method or of a sum, without the methods' fields."""
  weight = max(method.label_weight for method in methods.values())
  fields: dict[str, object] = {
    # 0 takes the rate of the student alone. Objectives differ in scale.
    "learning_rate": number(0.0),
  }
  if not any(method.without_teacher for method in methods.values()):
    # Weights of several teachers, in their order; () is equal weights.
    fields["teacher_weights"] = weights()
  if all(method.distillations for method in methods.values()):
    fields |= {
      # Fields of an objective in one phase.
      "label_weight": number(weight),
      # A factor on every distillation term, from `ramp_start` to 1 in `ramp_epochs`.
      "ramp": choice("none", ("none", *RAMPS)),
      "ramp_epochs": number(0.0),
      "ramp_start": number(0.0),
      # Models between teacher and student, each taught by the one before (teacher assistants).
      "assistants": any_names(),
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
    # Fields of the second phase, which has no term of the method itself.
    "second_label_weight": number(warmup.label_weight),
    "second_kd_weight": number(warmup.kd_weight),
    "second_kd_start": number(warmup.kd_start),
    "second_temperature": number(warmup.temperature, exclusive=True),
    "second_squared_temperature": flag(warmup.squared_temperature),
  }


def phases_of(methods: Mapping[str, Method], setup: Setup) -> list[PhaseSpec]:
  """Return the phases of a method or of a sum of methods, in order; the last trains the student.

  Args:
    methods: name -> method; several must all have `distillations`.
    setup: networks and hyperparameters, which are the whole "method" section.

  Raises:
    ConfigError: naming the field that does not fit.
  """
  if setup.hyperparameters.get("assistants"):
    return through_assistants(setup, functools.partial(phases_of, methods))
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
  hyperparameters = setup.hyperparameters
  _check_used(hyperparameters)
  learned = any(callable(t.distillation.weight) or t.distillation.weight for t in terms)
  if len(parts) == 1 and hyperparameters.get("two_stage"):
    if not learned:
      raise ConfigError(_NOTHING.format("two_stage=True"))
    return [*before, *_in_two_phases(parts[0][0], setup, terms, before)]
  if not learned and not hyperparameters.label_weight:
    raise ConfigError(_NOTHING.format("method.label_weight=0.0"))
  distillations = [t.distillation for t in terms]
  if hyperparameters.ramp != "none":
    distillations = [_ramped(d, setup) for d in distillations]
  scheme = offline(
    setup.student, setup.models, distillations, label_weight=hyperparameters.label_weight
  )
  final = PhaseSpec(
    DISTILLED,
    scheme,
    _inherited(setup, before),
    learning_rate=hyperparameters.learning_rate,
    notes=_notes(terms),
    strong=tuple(dict.fromkeys(view for d in distillations for view in d.views)),
  )
  return [*before, final]


_NOTHING = "all weights of the method are 0 with {}: expected one > 0, as nothing is learned"


def _check_used(hyperparameters: Mapping[str, object]) -> None:
  """Raise a ConfigError for a field that is set but has no effect because of another field."""
  if hyperparameters.get("ramp") == "none":
    for field in ("ramp_epochs", "ramp_start"):
      if hyperparameters[field]:
        raise ConfigError(f"method.{field}={hyperparameters[field]}: expected 0 with ramp='none'")
  if hyperparameters.get("two_stage") is False and hyperparameters["first_learning_rate"]:
    raise ConfigError(
      f"method.first_learning_rate={hyperparameters['first_learning_rate']}: expected 0 with "
      "two_stage=False"
    )


def _in_two_phases(
  method: Method, setup: Setup, terms: Sequence[Term], before: Sequence[PhaseSpec]
) -> list[PhaseSpec]:
  """Return two phases: the layers up to the deepest matched stage; then all, from labels and KD."""
  hyperparameters = setup.hyperparameters
  assert method.deepest is not None
  if hyperparameters.ramp != "none":
    raise ConfigError(f"method.ramp={hyperparameters.ramp!r}: expected 'none' with two_stage=True")
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
    epochs=hyperparameters.first_epochs,
    learning_rate=hyperparameters.first_learning_rate or hyperparameters.learning_rate,
    reported="",
    notes=_notes(terms),
    role="",
  )
  soft_targets: list[Distillation] = []
  if hyperparameters.second_kd_weight:
    soft_targets = [_soft_targets(setup.for_teacher(name)) for name in setup.teachers]
  elif not hyperparameters.second_label_weight:
    raise ConfigError(
      "method.second_kd_weight=0.0 and method.second_label_weight=0.0: expected one of them > 0"
    )
  # Without soft targets the second phase has no teacher.
  teachers = setup.models if soft_targets else {}
  second = PhaseSpec(
    DISTILLED,
    offline(
      setup.student, teachers, soft_targets, label_weight=hyperparameters.second_label_weight
    ),
    {"student": f"{WARMUP}/student", **{name: f"{name}/{name}" for name in teachers}},
    learning_rate=hyperparameters.learning_rate,
  )
  return [first, second]


def _soft_targets(setup: Setup) -> Distillation:
  """Return the term of the second phase for one teacher."""
  hyperparameters = setup.hyperparameters
  loss = soft_targets(
    temperature=hyperparameters.second_temperature,
    squared_temperature=hyperparameters.second_squared_temperature,
  )
  full = setup.share * hyperparameters.second_kd_weight
  weight: Weight = full
  if hyperparameters.second_kd_start != 1.0:
    steps = setup.epochs * setup.steps_per_epoch
    weight = ramp("linear", steps=steps, start=hyperparameters.second_kd_start * full, end=full)
  return Distillation(setup.named("kd"), loss, weight, setup.teacher_name)


def _inherited(setup: Setup, before: Sequence[PhaseSpec]) -> dict[str, str]:
  """Return the sources of teachers and of participants that earlier phases trained."""
  inherit = {name: f"{name}/{name}" for name in setup.teachers}
  for phase in before:
    inherit |= {participant: f"{phase.name}/{given}" for participant, given in phase.gives.items()}
  return inherit


def _ramped(distillation: Distillation, setup: Setup) -> Distillation:
  hyperparameters, weight = setup.hyperparameters, distillation.weight
  if not hyperparameters.ramp_epochs:
    raise ConfigError(
      f"method.ramp_epochs={hyperparameters.ramp_epochs}: expected a number > 0 with "
      f"ramp={hyperparameters.ramp!r}"
    )
  steps = hyperparameters.ramp_epochs * setup.steps_per_epoch
  rising = functools.partial(ramp, hyperparameters.ramp, steps=steps)
  start = hyperparameters.ramp_start
  if callable(weight):  # a warm-up of the method's own
    factor = rising(start=start, end=1.0)
    return dataclasses.replace(distillation, weight=lambda step: factor(step) * weight(step))
  return dataclasses.replace(distillation, weight=rising(start=start * weight, end=weight))


def _notes(terms: Sequence[Term]) -> tuple[str, ...]:
  return tuple(f"{t.distillation.name} compares {t.compares}" for t in terms if t.compares)


def _shares(setup: Setup) -> dict[str, float]:
  """Return every teacher's share; they sum to 1."""
  given = tuple(setup.hyperparameters.teacher_weights) or (1.0,) * len(setup.teachers)
  if len(given) != len(setup.teachers):
    raise ConfigError(
      f"method.teacher_weights={given}: expected one for each of {len(setup.teachers)} teachers"
    )
  return {name: w / sum(given) for name, w in zip(setup.teachers, given, strict=True)}
