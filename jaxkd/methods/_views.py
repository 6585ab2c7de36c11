"""Outputs of a student and its teachers for further views of the examples, `Distillation.views`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxkd.errors import ConfigError
from jaxkd.methods.distillation import Distillation
from jaxkd.networks import Model, infer_batch, key_for, learn, update
from jaxkd.tables import Table
from jaxkd.types import Array, Batch, Output, Participants


def check_views(
  distillations: Sequence[Distillation], teachers: Mapping[str, Model | Table], *, whole: bool
) -> None:
  """Raise a ConfigError for views of what cannot compute them.

  Args:
    distillations: the terms of an objective.
    teachers: participant -> model, or table of logits, which has no row for another view.
    whole: whether the whole student learns, not only the layers up to a stage or after it.
  """
  for d in distillations:
    if not d.views:
      continue
    where = f"distillation {d.name!r} compares the views {d.views}"
    if not whole:
      raise ConfigError(f"{where}: expected none with to_stage or from_stage")
    if d.adapter is not None or d.teacher_adapter is not None or any(d.gradients):
      raise ConfigError(f"{where}: expected none with an adapter or with gradients")
    for name in d.teachers:
      if isinstance(teachers[name], Table):
        raise ConfigError(f"{where} of {name!r}, which is {teachers[name]}: expected a network")


def teacher_views(
  distillation: Distillation,
  teachers: Mapping[str, Model | Table],
  participants: Participants,
  batch: Batch,
) -> dict[str, Any]:
  """Return the teacher side of a distillation by view, without that of the inputs."""
  found = {}
  for view in distillation.views:
    other = _seen(batch, view)
    found[view] = distillation.combined(
      {
        name: infer_batch(teachers[name], participants[name], name, other)
        for name in distillation.teachers
      }
    )
  return found


def student_views(
  student: Any,
  variables: Mapping[str, Any],
  changes: dict[str, Any],
  views: Sequence[str],
  batch: Batch,
  rng: Array,
) -> tuple[dict[str, Output], dict[str, Any]]:
  """Return the student's Output for every view, and its state after the last one.

  Args:
    student: the model.
    variables: its variables before the step.
    changes: its new state after the inputs.
    views: names of views.
    batch: batch that has them.
    rng: key of the step.
  """
  found: dict[str, Output] = {}
  for view in views:
    # Batch statistics move once per view, as if each were a batch.
    moved, key = update(variables, changes), key_for(rng, f"view {view}")
    found[view], after = learn(student, moved, _seen(batch, view).inputs, key, where=batch.mask)
    changes = update(changes, after)
  return found, changes


def _seen(batch: Batch, view: str) -> Batch:
  if view not in batch.views:
    raise ConfigError(f"batch.views={sorted(batch.views)}: expected {view!r} among them")
  return dataclasses.replace(batch, inputs=batch.views[view])
