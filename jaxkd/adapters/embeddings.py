"""Linear embeddings of a student's and a teacher's features in one space."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from jaxkd.types import Batch, Output


class Embeddings(nn.Module):
  """An adapter that embeds features of both networks, each by a dense layer of its own.

  Attributes:
    stages: (student's, teacher's) pairs of stages, whose arrays are flattened per example.
    width: numbers of an embedding.
    dtype: dtype of the computation; parameters stay float32.

  Parameters: "student_STAGE" and "teacher_STAGE" {"kernel", "bias"}. Both sides learn where the
  loss gives the teacher a gradient.

  Source: RepDistiller's LinearEmbed, the embedding of correlation congruence, of 128 numbers.
  """

  stages: tuple[tuple[str, str], ...]
  width: int = 128
  dtype: Any = None

  @nn.compact
  def __call__(self, inputs: tuple[Output, Output, Batch], train: bool) -> tuple[Output, Output]:
    """Map (student, teacher, batch) to both with embeddings (B, width) at the stages."""
    student, teacher, _ = inputs
    # A stage may be in several pairs.
    ours, theirs = (dict.fromkeys(sides) for sides in zip(*self.stages, strict=True))
    return self._embedded(student, "student", ours), self._embedded(teacher, "teacher", theirs)

  def _embedded(self, output: Output, side: str, stages: dict[str, None]) -> Output:
    found: dict[str, jax.Array] = dict(output.features)
    for stage in stages:
      x = found[stage]
      dense = nn.Dense(self.width, dtype=self.dtype, name=f"{side}_{stage}")
      found[stage] = dense(x.reshape(x.shape[0], -1))
    return dataclasses.replace(output, features=found)
