"""Soft targets: what is matched is the distribution over the classes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses.checks import check_positive, check_same_shape, is_number, logits_of
from jaxkd.losses.divergences import relative_entropy
from jaxkd.losses.precision import widen
from jaxkd.losses.supervised import cross_entropy
from jaxkd.types import Output, Terms


def soft_target_kl(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  temperature: float | jax.Array = 4.0,
  squared_temperature: bool = True,
) -> jax.Array:
  """Kullback-Leibler divergence from the student's softened distribution to the teacher's.

  T^2 * mean_b sum_c p_t * (log p_t - log p_s), with p = softmax(logits / T).

  Args:
    student: logits (B, C).
    teacher: logits (B, C), constant: it takes no gradient.
    temperature: T > 0, a number or a traced scalar.
    squared_temperature: multiply by T^2, so that the gradient keeps its size as T changes.

  Returns:
    The loss, a scalar, float32 or wider: sum over classes, mean over the batch.

  Raises:
    ConfigError: if the shapes differ, or the temperature is a number that is not positive.

  Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, as RepDistiller,
  mdistiller, SimKD and the Zoo. torchdistill without alpha is `squared_temperature=False`. Code
  with torch's element-wise mean (`reduction="mean"`) is C times smaller.

  >>> soft_target_kl(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]), temperature=1.0).round(4)
  Array(0.4621, dtype=float32)
  """
  check_positive("temperature", temperature)
  student, teacher = widen(student, lax.stop_gradient(teacher))
  check_same_shape("logits", student, teacher, "both must score the same classes, (B, C)")
  log_p_student = jax.nn.log_softmax(student / temperature)
  log_p_teacher = jax.nn.log_softmax(teacher / temperature)
  divergence = relative_entropy(log_p_student, log_p_teacher)
  scale = temperature * temperature if squared_temperature else 1.0
  return scale * jnp.mean(divergence)


def knowledge_distillation(
  student: Output,
  teacher: Output,
  labels: ArrayLike | None = None,
  *,
  temperature: float | jax.Array = 4.0,
  squared_temperature: bool = True,
  soft_weight: float | jax.Array = 1.0,
  hard_weight: float | jax.Array = 0.0,
) -> Terms:
  """Knowledge distillation: the student learns the teacher's softened class distribution.

  soft_weight * soft_target_kl(student, teacher) + hard_weight * cross_entropy(student, labels).
  The cross-entropy is off by default, because a scheme adds its own, with masked examples.

  Args:
    student: its logits (B, C) are used.
    teacher: its logits (B, C) are used; constant.
    labels: class numbers (B,) or probabilities (B, C); needed where hard_weight is not 0.
    temperature: T > 0, for the soft term alone.
    squared_temperature: see `soft_target_kl`.
    soft_weight: weight of the divergence.
    hard_weight: weight of the cross-entropy.

  Returns:
    Terms(logit=...), float32 or wider.

  Raises:
    ConfigError: if logits are missing, differ in shape, the temperature is not positive, or
      hard_weight is not 0 and there are no labels.

  Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. By default T^2 KL
  alone, with RepDistiller's T = 4. "alpha" means opposite things: attention-transfer and
  RepDistiller weigh the soft term by it (`soft_weight=a, hard_weight=1 - a`), torchdistill the
  hard one (`soft_weight=1 - a, hard_weight=a`; without alpha, `squared_temperature=False`).

  >>> z = Output(logits=jnp.array([[1.0, 0.0]]))
  >>> float(knowledge_distillation(z, z).total)
  0.0
  """
  student_logits = logits_of(student, what="knowledge_distillation", who="student")
  soft = soft_target_kl(
    student_logits,
    logits_of(teacher, what="knowledge_distillation", who="teacher"),
    temperature=temperature,
    squared_temperature=squared_temperature,
  )
  logit = soft_weight * soft
  if not (is_number(hard_weight) and hard_weight == 0):
    if labels is None:
      raise ConfigError(f"hard_weight is {hard_weight} but no labels were given")
    logit = logit + hard_weight * cross_entropy(student_logits, labels)
  return Terms(logit=logit)
