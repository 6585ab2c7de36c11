"""Decoupled knowledge distillation (DKD): the target class, and all other classes."""

from __future__ import annotations

import jax
from jax.typing import ArrayLike

from jaxkd.losses._checks import check_positive, logits_of
from jaxkd.losses._numerics import relative_entropy, widen
from jaxkd.losses._targets import (
  between_others,
  binary_log_probabilities,
  logits_and_targets,
  other_log_probabilities,
)
from jaxkd.types import Output, Terms


def target_class_kl(
  student: ArrayLike,
  teacher: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  temperature: float | jax.Array = 4.0,
  squared_temperature: bool = True,
  standardize: bool = False,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Divergence of the probability of the target class, against all others together (TCKD).

  T^2 * mean_b KL((p_t, 1 - p_t) || (p_s, 1 - p_s)), p the probability of the label's class in
  softmax(logits / T).

  Args:
    student: logits (..., C), with any leading axes. A logit of -inf is an impossible class.
    teacher: logits of the same shape, constant: they take no gradient.
    labels: class numbers with the leading axes, or class probabilities (..., C), of which the
      largest is the target.
    weights: weight of each label, (B,) or with all leading axes; 0 leaves an example out. The mean
      is that of the labels, sum_b w_b * value_b / sum_b w_b. None weights all by 1.
    temperature: T > 0, a number or a traced scalar.
    squared_temperature: multiply by T^2, so that the gradient keeps its size as T changes.
    standardize: both sides' logits first get mean 0 and standard deviation 1 over all classes; see
      `soft_target_kl`.
    axis_name: device axis of a mapped step: the weights are then summed over all devices, as in
      `cross_entropy`.
    where: mask (B,) or with all leading axes of the logits, nonzero where a position counts; the
      rest is padding and may hold any values. None: all count.

  Returns:
    The loss, a scalar, float32 or wider, 0 if nothing counts; NaN if a label that counts is not a
    class; inf if the target is impossible for the student and possible for the teacher.

  Raises:
    ConfigError: if the shapes do not fit together, or the temperature is a number that is not
      positive.

  Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, eq. 7, as mdistiller's
  dkd_loss, which takes the logarithm of a softmax: inf where a probability underflows. log(1 - p)
  is computed from the other classes' logits here.

  >>> import jax.numpy as jnp
  >>> z = jnp.array([[1.0, 0.0, 0.0]])
  >>> target_class_kl(z, 2 * z, jnp.array([0]), temperature=1.0).round(4)
  Array(0.0989, dtype=float32)
  """
  what = "target_class_kl"
  check_positive("temperature", temperature)
  student, teacher, targets = logits_and_targets(
    what, student, teacher, labels, weights, where, standardize=standardize
  )
  log_p, log_target = (
    binary_log_probabilities(z, targets.chosen, temperature) for z in (student, teacher)
  )
  scale = temperature * temperature if squared_temperature else 1.0
  return scale * targets.mean(relative_entropy(log_p, log_target), axis_name)


def other_classes_kl(
  student: ArrayLike,
  teacher: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  temperature: float | jax.Array = 4.0,
  squared_temperature: bool = True,
  standardize: bool = False,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Divergence between the distributions over the classes that are not the target (NCKD).

  T^2 * mean_b KL(q_t || q_s), q = softmax(logits / T) over all classes but the label's.

  Args:
    student: logits (..., C), with any leading axes. A logit of -inf is an impossible class.
    teacher: logits of the same shape, constant: they take no gradient.
    labels: class numbers with the leading axes, or class probabilities (..., C), of which the
      largest is the target.
    weights: weight of each label; see `target_class_kl`.
    temperature: T > 0, a number or a traced scalar.
    squared_temperature: multiply by T^2.
    standardize: standardise both sides' logits first; see `target_class_kl`.
    axis_name: device axis of a mapped step; see `target_class_kl`.
    where: mask of what counts; see `target_class_kl`.

  Returns:
    The loss, a scalar, float32 or wider, 0 if nothing counts, and for an example for which the
    teacher has no other possible class. With two classes it is 0.

  Raises:
    ConfigError: if the shapes do not fit together, or the temperature is a number that is not
      positive.

  Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, eq. 7, as mdistiller's
  dkd_loss, which lowers the target's logit by 1000; the target is left out exactly here.

  >>> import jax.numpy as jnp
  >>> z = jnp.array([[5.0, 1.0, 0.0]])
  >>> other_classes_kl(z, jnp.array([[0.0, 2.0, 0.0]]), jnp.array([0]), temperature=1.0).round(4)
  Array(0.0671, dtype=float32)
  """
  what = "other_classes_kl"
  check_positive("temperature", temperature)
  student, teacher, targets = logits_and_targets(
    what, student, teacher, labels, weights, where, standardize=standardize
  )
  log_q, student_alone = other_log_probabilities(student, targets.chosen, temperature)
  log_target, teacher_alone = other_log_probabilities(teacher, targets.chosen, temperature)
  values = between_others(relative_entropy(log_q, log_target), student_alone, teacher_alone)
  scale = temperature * temperature if squared_temperature else 1.0
  return scale * targets.mean(values, axis_name)


def decoupled_distillation(
  student: Output,
  teacher: Output,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  target_weight: float | jax.Array = 1.0,
  others_weight: float | jax.Array = 8.0,
  temperature: float | jax.Array = 4.0,
  squared_temperature: bool = True,
  standardize: bool = False,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> dict[str, Terms]:
  """Decoupled knowledge distillation (DKD): alpha * TCKD + beta * NCKD, as two terms.

  KL(teacher || student) over all classes is TCKD + (1 - p_t) * NCKD, p_t the teacher's probability
  of the target: the more certain the teacher, the less the other classes count. DKD weights them
  independently of it.

  Args:
    student: Output with logits (..., C).
    teacher: Output with logits (..., C), constant.
    labels: class numbers with the leading axes, or class probabilities (..., C), of which the
      largest is the target.
    weights: weight of each label; 0 leaves an example out of both terms, as it has no target.
    target_weight: alpha, weight of `target_class_kl`.
    others_weight: beta, weight of `other_classes_kl`.
    temperature: T > 0, of both.
    squared_temperature: multiply by T^2.
    standardize: standardise both sides' logits first; see `target_class_kl`.
    axis_name: device axis of a mapped step; see `target_class_kl`.
    where: mask of what counts; see `target_class_kl`.

  Returns:
    {"target": Terms(logit=alpha * TCKD), "others": Terms(logit=beta * NCKD)}, float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs; if logits are missing, or shapes do not fit; if the
      temperature is not positive.

  Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022; defaults of mdistiller's DKD
  (alpha 1, beta 8, T 4), where beta is 2 or 6 for some pairs. Each term is multiplied by T^2 and
  averaged over the batch. `standardize=True` is the form of Sun et al., CVPR 2024, with beta 9 and
  T 2. The published code has labels that are class numbers; for mixed ones the largest is taken
  here, as in NKD's.

  >>> import jax.numpy as jnp
  >>> z = Output(logits=jnp.array([[1.0, 0.0]]))
  >>> {name: float(terms.total) for name, terms in decoupled_distillation(z, z, [0]).items()}
  {'target': 0.0, 'others': 0.0}
  """
  what = "decoupled_distillation"
  ours = logits_of(student, what=what, role="student")
  theirs = logits_of(teacher, what=what, role="teacher")
  # Widened once: the gradients of both terms are then added in float32.
  ours, theirs = widen(ours, theirs)

  def part(kernel, weight: float | jax.Array) -> Terms:
    value = kernel(
      ours,
      theirs,
      labels,
      weights,
      temperature=temperature,
      squared_temperature=squared_temperature,
      standardize=standardize,
      axis_name=axis_name,
      where=where,
    )
    return Terms(logit=weight * value)

  return {
    "target": part(target_class_kl, target_weight),
    "others": part(other_classes_kl, others_weight),
  }
