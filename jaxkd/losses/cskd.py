"""CS-KD: predictions for two examples of one class are to agree."""

from __future__ import annotations

import jax
from jax.typing import ArrayLike

from jaxkd.losses._checks import logits_of
from jaxkd.losses.kd import soft_target_kl
from jaxkd.types import Output, Terms


def class_wise(
  student: Output,
  partner: Output,
  *,
  temperature: float | jax.Array = 4.0,
  squared_temperature: bool = True,
  where: ArrayLike | None = None,
) -> Terms:
  """CS-KD: match the prediction for another example of the same class.

  `soft_target_kl(student, partner)`: T^2 * mean_b KL(softmax(partner / T) || softmax(student / T)).

  Args:
    student: Output with logits (..., C).
    partner: Output of the same network with logits (..., C), constant: row b belongs to another
      example of the class of row b.
    temperature: T > 0.
    squared_temperature: multiply by T^2.
    where: mask of what counts; see `soft_target_kl`.

  Returns:
    Terms(logit=...), float32 or wider. It is 0 where both predictions agree.

  Raises:
    ConfigError: for arrays in place of Outputs; if logits are missing or differ in shape; if the
      temperature is not positive.

  Source: Yun et al., "Regularizing Class-Wise Predictions via Self-Knowledge Distillation", CVPR
  2020, as the authors' code: T = 4, with T^2, sum over classes, mean over pairs.

  >>> import jax.numpy as jnp
  >>> z = Output(logits=jnp.array([[1.0, 0.0]]))
  >>> float(class_wise(z, z).total)
  0.0
  """
  return Terms(
    logit=soft_target_kl(
      logits_of(student, what="class_wise", role="student"),
      logits_of(partner, what="class_wise", role="partner"),
      temperature=temperature,
      squared_temperature=squared_temperature,
      where=where,
    )
  )
