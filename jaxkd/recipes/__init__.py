"""Methods by name, their hyperparameters and their schemes: where names meet code.

A method is one entry in a file of this package. `METHODS` is all of them; a "+" between names of
methods with a common objective adds them up ("kd+at").
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxkd.errors import needed_by

with needed_by("jaxkd.recipes"):
  import ml_collections


from jaxkd import config, schemes
from jaxkd.config import Fields, text
from jaxkd.errors import ConfigError, unknown_name
from jaxkd.recipes import (
  consistency,
  exits,
  features,
  logits,
  objective,
  simkd,
  together,
  transforms,
)
from jaxkd.recipes.method import Method, Pair, Teacher, Training
from jaxkd.recipes.objective import ALONE
from jaxkd.types import Output

METHODS: Mapping[str, Method] = {
  "teacher": Method("the teacher alone, from labels", {}, same_classes="scores the teacher"),
  "alone": Method("the student alone, from labels", {}, takes_exits=True),
  **logits.METHODS,
  **features.METHODS,
  **transforms.METHODS,
  **simkd.METHODS,
  **together.METHODS,
  **exits.METHODS,
}

__all__ = [
  "ALONE",
  "METHODS",
  "Method",
  "Pair",
  "Teacher",
  "Training",
  "alone",
  "base_config",
  "check_classes",
  "check_config",
  "fields",
  "methods",
  "section",
  "trainings",
]


def methods(name: str) -> dict[str, Method]:
  """The method of a name, or the several of a sum such as "kd+at".

  Raises:
    ConfigError: if there is no such method, naming the nearest; or if one cannot be added.
  """
  names = name.split("+") if isinstance(name, str) else [name]
  found: dict[str, Method] = {}
  for one in names:
    if not isinstance(one, str) or one not in METHODS:
      raise unknown_name("method", one, METHODS)
    if one in found:
      raise ConfigError(f"method.name={name!r}: {one!r} is there twice")
    found[one] = METHODS[one]
    if len(names) > 1 and not METHODS[one].distillations:
      sums = ", ".join(n for n, method in METHODS.items() if method.distillations)
      raise ConfigError(f"method.name={name!r}: {one!r} cannot be added; these can: {sums}")
  return found


def fields(method: str) -> Fields:
  """Every field of a config for `method`, with what each accepts.

  The "method" section holds a method's own fields; those of a sum are in a section for each.

  Raises:
    ConfigError: as `methods`.
  """
  found = methods(method)
  own: dict[str, object] = {"name": text(method)}
  if len(found) == 1:
    own |= found[method].fields
  else:
    own |= {name: part.fields for name, part in found.items()}
  if all(part.distils for part in found.values()):
    own |= objective.objective_fields(found)
  return {**config.COMMON, "method": own}


def base_config(method: str) -> ml_collections.ConfigDict:
  """The config that files in `configs/` start from: RepDistiller's CIFAR recipe for `method`."""
  return config.defaults(fields(method))


def section(settings: ml_collections.ConfigDict, method: str) -> ml_collections.ConfigDict | None:
  """Where a config holds a method's own fields, alone or in a sum; None where it has none of it.

  >>> section(base_config("kd+at"), "at").power
  2.0
  """
  own = settings.method
  if own.name == method:
    return own
  return own[method] if method in own.name.split("+") else None


def check_config(settings: ml_collections.ConfigDict) -> None:
  """Raises a ConfigError if a field is unknown, missing or out of range, or contradicts another.

  What takes data or networks to tell is the plan's matter.
  """
  method = settings.get("method", {})
  name = method.get("name", "") if hasattr(method, "get") else method
  config.check(settings, fields(name))
  consistency.check(settings, with_teacher=name == "teacher" or is_taught(name))


def remarks(settings: ml_collections.ConfigDict) -> list[str]:
  """A line for every field of a valid config that has less effect than it seems to."""
  name = settings.method.name
  return consistency.remarks(settings, with_teacher=name == "teacher" or is_taught(name))


def is_taught(name: str) -> bool:
  """Whether students of a method, or of several added up, learn from a teacher trained before.

  >>> is_taught("kd+at"), is_taught("dml"), is_taught("alone"), is_taught("teacher")
  (True, False, False, False)
  """
  return all(method.distils and not method.without_teacher for method in methods(name).values())


def alone(pair: Pair) -> Training:
  """The student that learns from labels alone, at every exit if it has several."""
  name = pair.hyperparameters.name
  special = METHODS[name].baseline if name in METHODS else None
  if special is not None:
    return special(pair)
  if isinstance(pair.student_output, tuple):
    return exits.exit_wise(pair, pair.student)
  return Training(ALONE, schemes.supervised(pair.student))


def trainings(pair: Pair) -> list[Training]:
  """The trainings that the method of `pair.hyperparameters` asks for, in their order.

  Raises:
    ConfigError: naming the stage, connector or field that does not fit.
  """
  found = methods(pair.hyperparameters.name)
  _check_needs(found, pair)
  return objective.trainings(found, pair)


def check_classes(
  settings: ml_collections.ConfigDict, teachers: Mapping[str, Teacher], num_classes: int
) -> None:
  """Raises a ConfigError if a teacher of other classes than the student's meets their logits.

  Args:
    settings: a config, whose method it is.
    teachers: participant name -> Teacher.
    num_classes: the student's.
  """
  for name in methods(settings.method.name):
    own = section(settings, name)
    assert own is not None
    why = METHODS[name].why_same_classes(own)
    for teacher in teachers.values():
      if why and teacher.num_classes != num_classes:
        able = [n for n, m in METHODS.items() if m.distillations and not m.same_classes]
        raise ConfigError(
          f"{teacher.field} predicts {teacher.num_classes} classes, the student {num_classes} "
          f"(data set {settings.data.name!r}), and method {name!r} {why}; these compare no logits: "
          f"{', '.join(able)}"
        )


def _check_needs(found: Mapping[str, Method], pair: Pair) -> None:
  """Raises a ConfigError for a method that compares what these networks do not have at all."""
  owners = {"student": pair.student_output, **{n: t.output for n, t in pair.teachers.items()}}
  for name, method in found.items():
    for owner, output in owners.items():
      if not isinstance(output, Output) or _gives(method.needs, output):
        continue
      able = [n for n, m in METHODS.items() if m.distils and _gives(m.needs, output)]
      has = ", ".join(f"{s} {x.shape[1:]}" for s, x in sorted(output.features.items()))
      raise ConfigError(
        f"method {name!r} compares {_NEEDS[method.needs]}, and the {owner} has none: it gives "
        f"{has or 'logits alone'}. These methods can do with that: {', '.join(able)}"
      )


_NEEDS = {
  "features": "features",
  "maps": "feature maps (B, H, W, C)",
  "preactivations": "preactivations",
  "stages": "features of stages",
}


def _gives(needs: str, output: Output) -> bool:
  if needs == "maps":
    return any(x.ndim == 4 for x in output.features.values())
  if needs == "preactivations":
    return bool(output.preactivations)
  return needs == "logits" or bool(output.features)
