"""The predictions of a network for its training examples, from the last time that it saw each."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxkd.adapters.memory import all_examples, write_rows
from jaxkd.losses._numerics import log_probabilities, widen
from jaxkd.types import MEMORY, Batch


class PastPredictions(nn.Module):
  """A table of class probabilities with one row per training example, equal on all devices.

  It has the collection "memory": "predictions" (rows, ..., C), zeros where an example was never
  seen. It has no parameters.

  Attributes:
    rows: number of rows, more than the largest of `Batch.indices`.
    device_axis: set by the training step; the table is written from the examples of all devices.

  Source: Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV
  2021, as the authors' code, which keeps the table on the host.
  """

  rows: int
  device_axis: str | None = None

  @nn.compact
  def __call__(self, inputs: tuple[jax.Array, Batch], train: bool) -> tuple[jax.Array, jax.Array]:
    """Return the stored rows of a batch; in training, then store its predictions.

    Args:
      inputs: logits (B, ..., C) and their batch, whose `indices` and `mask` are read.
      train: store softmax(logits) in the rows of the examples that count.

    Returns:
      Probabilities (B, ..., C), and which of the examples (B,) have some.
    """
    logits, batch = inputs
    (logits,) = widen(lax.stop_gradient(logits))
    shape = (self.rows, *logits.shape[1:])
    table = self.variable(MEMORY, "predictions", jnp.zeros, shape, logits.dtype)
    # An index without a row reads zeros: as an example that was never seen.
    rows = lax.stop_gradient(jnp.asarray(table.value))
    past = rows.at[batch.indices].get(mode="fill", fill_value=0)
    seen = jnp.any(past > 0, axis=tuple(range(1, past.ndim)))
    if train:
      own, counted = jnp.exp(log_probabilities(logits)), None
      if batch.mask is not None:
        mask: Any = jnp.asarray(batch.mask) != 0
        own = jnp.where(mask.reshape(mask.shape + (1,) * (own.ndim - mask.ndim)), own, 0)
        counted = jnp.any(mask.reshape(len(mask), -1), axis=1)
        counted = all_examples(counted, self.device_axis)
      places, values = (all_examples(x, self.device_axis) for x in (batch.indices, own))
      table.value = write_rows(rows, places, values, counted)
    return past, seen
