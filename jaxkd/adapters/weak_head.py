"""A linear classifier on features of the middle of a network."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxkd.types import Batch, Output


class WeakHead(nn.Module):
  """An adapter that gives the logits of a linear layer on one stage of the student.

  It maps (student, teacher, batch) to (student, Output of these logits); the teacher is not read.
  Features are averaged over all positions.

  Attributes:
    num_classes: C.
    stage: stage of the student's features, (B, ..., D).
    dtype: dtype of the computation; parameters stay float32.
  """

  num_classes: int
  stage: str
  dtype: Any = None

  @nn.compact
  def __call__(self, inputs: tuple[Output, Any, Batch], train: bool) -> tuple[Output, Output]:
    """Return the student's Output, and one with logits (B, C)."""
    student, _, _ = inputs
    features = jnp.asarray(student.features[self.stage])
    rows = features.reshape(features.shape[0], math.prod(features.shape[1:-1]), features.shape[-1])
    logits = nn.Dense(self.num_classes, dtype=self.dtype, name="linear")(jnp.mean(rows, axis=1))
    return student, Output(logits=logits)
