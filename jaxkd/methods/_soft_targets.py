"""The divergence of softened logits, for batches of single labels and of multi-hot ones."""

from __future__ import annotations

from typing import Any

from jaxkd.fields import flag
from jaxkd.losses import knowledge_distillation, sigmoid_distillation
from jaxkd.methods._labels import refuse_multi_hot
from jaxkd.methods.distillation import Loss
from jaxkd.types import Batch, Context, Terms

# Both sides' logits get mean 0 and standard deviation 1 over the classes before they are compared.
# The authors then have T = 2 and, on CIFAR-100, a weight of 9.
STANDARDIZE = {"standardize": flag(False)}


def soft_targets(
  *,
  temperature: Any = 4.0,
  squared_temperature: bool = True,
  standardize: bool = False,
  **divergence: Any,
) -> Loss:
  """Return the loss that compares softened logits.

  It is `jaxkd.losses.knowledge_distillation`; for a batch with `Batch.multi_label`, whose classes
  do not exclude each other, `jaxkd.losses.sigmoid_distillation`, their mean over classes.

  Args:
    temperature: of both.
    squared_temperature: of both.
    standardize: of exclusive classes; batches with several labels are then refused, as the
      threshold between yes and no is a logit of 0.
    **divergence: options of `jaxkd.losses.knowledge_distillation` about the divergence. With any,
      batches with several labels are refused, too.
  """
  options: dict[str, Any] = {
    "temperature": temperature,
    "squared_temperature": squared_temperature,
  }

  def loss(student: Any, teacher: Any, batch: Batch, context: Context) -> Terms:
    if standardize:
      refuse_multi_hot("standardize=True", batch)
    if divergence:
      named = ", ".join(f"{name}={value!r}" for name, value in divergence.items())
      refuse_multi_hot(named, batch)
    if batch.multi_label:
      return sigmoid_distillation(student, teacher, where=batch.mask, **options)
    return knowledge_distillation(
      student, teacher, where=batch.mask, standardize=standardize, **options, **divergence
    )

  return loss
