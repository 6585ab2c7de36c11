"""Adapters that apply modules at stages of a student or a teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn

from jaxkd.types import Batch, Output

Arrays = Literal["features", "preactivations"]


class AtStages(nn.Module):
  """An adapter that passes the student's arrays of some stages through one module each.

  Attributes:
    modules: stage -> `__call__(array, train)`.
    arrays: "features" or "preactivations".

  Variables: those of the module if there is one stage; else one level per stage.
  """

  modules: Mapping[str, nn.Module]
  arrays: Arrays = "features"

  def setup(self) -> None:
    """Share the scope with a single module, so that its variables have no further level."""
    if len(self.modules) == 1:
      nn.share_scope(self, next(iter(self.modules.values())))

  def __call__(self, inputs: tuple[Output, Any, Batch], train: bool) -> tuple[Output, Any]:
    """Map (student, teacher, batch) to (student, teacher) with the student's arrays replaced."""
    student, teacher, _ = inputs
    return _replaced(student, self.modules, self.arrays, train), teacher


class TeacherAtStages(nn.Module):
  """A teacher adapter that passes the teacher's arrays of some stages through one module each.

  Attributes:
    modules: stage -> `__call__(array, train)`.
    arrays: "features" or "preactivations".

  Variables: as those of `AtStages`.
  """

  modules: Mapping[str, nn.Module]
  arrays: Arrays = "features"

  def setup(self) -> None:
    """Share the scope with a single module, as in `AtStages`."""
    if len(self.modules) == 1:
      nn.share_scope(self, next(iter(self.modules.values())))

  def __call__(self, inputs: tuple[Output, Batch], train: bool) -> Output:
    """Map (teacher, batch) to the teacher with its arrays replaced."""
    return _replaced(inputs[0], self.modules, self.arrays, train)


def _replaced(output: Output, modules: Mapping[str, Any], arrays: Arrays, train: bool) -> Output:
  found = dict(getattr(output, arrays))
  for stage, module in modules.items():
    found[stage] = module(found[stage], train)
  changed: dict[str, Any] = {arrays: found}
  return dataclasses.replace(output, **changed)
