"""The phase of a teacher that comes trained: scored, fine-tuned, or stored logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxkd import methods
from jaxkd.data import Dataset
from jaxkd.methods.base import PhaseSpec, Teacher
from jaxkd.networks import initialize
from jaxkd.tables import Table
from jaxkd.train import Expected, Phase
from jaxkd.types import Array, Aux, Batch, Participants, Scheme

# Hint for a trained teacher whose accuracy is at chance.
_HINT = (
  "check that its images and classes are those that it was trained on (teacher.mean, teacher.std, "
  "teacher.image_size, data.name)"
)


def teacher_spec(name: str, teacher: Teacher, settings: Any) -> PhaseSpec:
  """Return the spec of one teacher's phase.

  Args:
    name: participant, "teacher" or "teacher_N".
    teacher: the teacher.
    settings: a config.
  """
  stored = isinstance(teacher.module, Table)
  scheme = (
    _stored(name, teacher.module) if stored else methods.supervised(teacher.model, participant=name)
  )
  return PhaseSpec(
    name,
    scheme,
    epochs=settings.teacher.finetune_epochs or None,
    learning_rate=settings.teacher.finetune_learning_rate or None,
    seed_offset=int(name.partition("_")[2] or 0),
    reported="" if stored else name,
    label=teacher.label,
    role="teacher",
  )


def with_variables(
  phase: Phase, teacher: Teacher, variables: Mapping[str, Any], settings: Any, data: Dataset
) -> Phase:
  """Return a teacher's phase with the variables it comes with; without epochs, or fine-tuning.

  A teacher that is not fine-tuned is scored like any other, where the config says so and its
  classes are the data's.
  """
  phase = dataclasses.replace(phase, given={phase.name: variables}, notes=teacher.notes)
  if settings.teacher.finetune_epochs:
    return phase
  comparable = teacher.num_classes == data.num_classes and not isinstance(teacher.module, Table)
  return dataclasses.replace(
    phase,
    epochs=0,
    reported=phase.name if comparable and settings.teacher.rescore else "",
    expected=Expected(phase.name, data.num_classes, teacher.accuracy, _HINT)
    if comparable
    else None,
  )


def with_tables(phase: Phase, teachers: Mapping[str, Teacher]) -> Phase:
  """Return a student's phase with the tables of the teachers that it inherits."""
  tables = {
    name: teacher.module
    for name, teacher in teachers.items()
    if isinstance(teacher.module, Table) and name in phase.inherit
  }
  return dataclasses.replace(phase, tables=tables)


def _stored(name: str, table: Table) -> Scheme:
  """Return the scheme of a table, in which nothing learns or predicts."""

  def init(rng: Array, batch: Batch) -> Participants:
    return {name: initialize(table, rng, name, batch.inputs)}

  def loss(*_: Any) -> tuple[Array, Aux]:
    raise TypeError(f"{name!r} has stored logits: its phase has no epochs")

  return Scheme(init, lambda *_: None, loss, lambda *_: {}, (), lambda _: {})
