"""What the best epoch of a phase is chosen by: the field `keep_by`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxkd.errors import ConfigError
from jaxkd.methods.base import Teacher
from jaxkd.networks import infer
from jaxkd.tables import Table
from jaxkd.train import Phase
from jaxkd.train.evaluate import AGREEMENT, chosen_metric, is_better
from jaxkd.types import Array, Participants

_TEACHER = "teacher"


def with_reference(
  phase: Phase, method: str, teachers: Mapping[str, Teacher], num_classes: int
) -> Phase:
  """Return a student's phase that also scores the agreement with the first teacher.

  It is called for `keep_by="agreement"`; other phases than a student's stay as they are.

  Args:
    phase: the phase.
    method: name of the method, for messages.
    teachers: participant -> teacher.
    num_classes: of the data set.

  Raises:
    ConfigError: for a teacher of other classes, or of several outputs, and for a method whose
      student's phase does not have the teacher.
  """
  if phase.role != "student":
    return phase
  where = f"keep_by={AGREEMENT!r}"
  teacher = teachers[_TEACHER]
  if isinstance(teacher.model, Table) or teacher.output.logits is None:
    raise ConfigError(f"{where}: {teacher.field} predicts no classes")
  if teacher.num_classes != num_classes:
    raise ConfigError(
      f"{where}: {teacher.field} predicts {teacher.num_classes} classes, expected {num_classes} as "
      "the data has"
    )
  if _TEACHER not in (*phase.inherit, *phase.given):
    raise ConfigError(f"{where}: method {method!r} trains without the teacher")

  def reference(participants: Participants, inputs: Any) -> Array:
    return infer(teacher.model, participants[_TEACHER], inputs).logits

  return dataclasses.replace(phase, reference=reference)


def best_row(rows: Sequence[Mapping[str, Any]], phase: Phase) -> Mapping[str, Any]:
  """Return the first row with the best validation score of a phase's reported predictor.

  Args:
    rows: one per epoch, of which some are validated.
    phase: the phase.
  """
  validated = [row for row in rows if "validation" in row]
  chosen = validated[0]
  for row in validated[1:]:
    best = chosen["validation"][phase.reported]
    metric = chosen_metric(best, phase.keep_by)
    if is_better(row["validation"][phase.reported], best[metric], phase.keep_by):
      chosen = row
  return chosen
