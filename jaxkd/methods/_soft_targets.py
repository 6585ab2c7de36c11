"""The divergence of softened logits, for batches of single labels and of multi-hot ones."""

from __future__ import annotations

from typing import Any

from jaxkd.losses import knowledge_distillation, sigmoid_distillation
from jaxkd.methods.distillation import Loss
from jaxkd.types import Batch, Context, Terms


def soft_targets(*, temperature: Any = 4.0, squared_temperature: bool = True) -> Loss:
  """Return the loss that compares softened logits.

  It is `jaxkd.losses.knowledge_distillation`; for a batch with `Batch.multi_label`, whose classes
  do not exclude each other, `jaxkd.losses.sigmoid_distillation`, their mean over classes.

  Args:
    temperature: of both.
    squared_temperature: of both.
  """
  options: dict[str, Any] = {
    "temperature": temperature,
    "squared_temperature": squared_temperature,
  }

  def loss(student: Any, teacher: Any, batch: Batch, context: Context) -> Terms:
    kernel = sigmoid_distillation if batch.multi_label else knowledge_distillation
    return kernel(student, teacher, where=batch.mask, **options)

  return loss
