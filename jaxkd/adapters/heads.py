"""Adapter that adds an exit to stages of a student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from jaxkd.types import Batch, Output


class ExitsAtStages(nn.Module):
  """An adapter whose student side is a tuple of exits: one per head, and last the student.

  Attributes:
    heads: stage -> `__call__(features, train, where)` -> logits; `where` is `Batch.mask`.

  Variables: one level per stage, "heads_STAGE".
  """

  heads: Mapping[str, nn.Module]

  def __call__(
    self, inputs: tuple[Output, Any, Batch], train: bool
  ) -> tuple[tuple[Output, ...], Any]:
    """Map (student, teacher, batch) to ((head, ..., student), teacher)."""
    student, teacher, batch = inputs
    exits = [
      Output(logits=head(student.features[stage], train, batch.mask))
      for stage, head in self.heads.items()
    ]
    return (*exits, student), teacher
