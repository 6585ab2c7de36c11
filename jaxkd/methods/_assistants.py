"""Teacher assistants: models between teacher and student, each taught by the one before."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.methods.base import DISTILLED, PhaseSpec, Setup, Teacher
from jaxkd.shapes import batched
from jaxkd.types import Output


def through_assistants(
  setup: Setup, phases_of: Callable[[Setup], Sequence[PhaseSpec]]
) -> list[PhaseSpec]:
  """Return the phases of every assistant, "assistant_1" and so on, and those of the student.

  Every assistant learns by the method, as a student does; the student's teacher is the last one.

  Args:
    setup: networks and hyperparameters, with `assistants`.
    phases_of: setup without assistants -> phases of the method.

  Raises:
    ConfigError: for several teachers, or an assistant that cannot be created or has several exits.

  Source: Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant", AAAI 2020, with
  softened logits; a chain of several assistants is theirs, too.
  """
  names = tuple(setup.hyperparameters.assistants)
  if len(setup.teachers) > 1:
    raise ConfigError(
      f"method.assistants={names}: expected () with {len(setup.teachers)} teachers, as an "
      "assistant is taught by one"
    )
  # The same fields, without assistants.
  plain = copy.deepcopy(setup.hyperparameters)
  plain.assistants = ()
  setup = dataclasses.replace(setup, hyperparameters=plain)
  source, found = "teacher/teacher", []
  for number, name in enumerate(names, start=1):
    called = f"assistant_{number}"
    field = f"method.assistants={names}"
    module = setup.create(name, field)
    output = _shapes(setup, module)
    if not isinstance(output, Output):
      raise ConfigError(f"{field}: {name!r} has several exits, and an assistant needs to have one")
    taught = dataclasses.replace(setup, student=module, student_output=output)
    found += _chained(phases_of(taught), source, called, name)
    setup = dataclasses.replace(setup, teachers={"teacher": Teacher(module, output, name, field)})
    source = f"{called}/student"
  return [*found, *_chained(phases_of(setup), source)]


def _chained(
  specs: Sequence[PhaseSpec], source: str, called: str = "", label: str = ""
) -> list[PhaseSpec]:
  """Return phases whose teacher is `source`; those of an assistant get names and a role of its own.

  Args:
    specs: phases that inherit "teacher/teacher".
    source: phase and participant of the teacher.
    called: name of the assistant; "" for the student.
    label: its model.
  """
  renamed = {spec.name: _name(spec.name, called) for spec in specs}

  def from_where(inherit: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for participant, origin in inherit.items():
      phase, _, name = origin.partition("/")
      moved = f"{renamed.get(phase, phase)}/{name}"
      found[participant] = source if origin == "teacher/teacher" else moved
    return found

  return [
    dataclasses.replace(
      spec,
      name=renamed[spec.name],
      inherit=from_where(spec.inherit),
      label=spec.label or label,
      role="teacher" if called and spec.role == "student" else spec.role,
    )
    for spec in specs
  ]


def _name(phase: str, called: str) -> str:
  if not called:
    return phase
  return called if phase == DISTILLED else f"{called}_{phase}"


def _shapes(setup: Setup, module: nn.Module) -> Output | tuple[Output, ...]:
  """Return the shapes of a model's output."""

  def run(key: jax.Array, inputs: object) -> object:
    output, _ = module.init_with_output(key, inputs, train=False)
    return output

  shapes: Output | tuple[Output, ...] = jax.eval_shape(
    run, jax.random.key(0), batched(setup.image_shape, (2,))
  )
  return shapes
