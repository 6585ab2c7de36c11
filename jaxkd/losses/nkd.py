"""Normalised knowledge distillation (NKD): the target class, and the others normalised."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd.losses._checks import check_positive, logits_of
from jaxkd.losses._numerics import entropy, log_probabilities, relative_entropy, widen
from jaxkd.losses._targets import (
  between_others,
  logits_and_targets,
  of_target,
  other_log_probabilities,
)
from jaxkd.types import Output, Terms


def target_soft_cross_entropy(
  student: ArrayLike,
  teacher: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  standardize: bool = False,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Log-likelihood of the target class, weighted by the teacher's probability of it.

  -mean_b p_t[y] * log p_s[y], p = softmax(logits), without a temperature.

  Args:
    student: logits (..., C), with any leading axes. A logit of -inf is an impossible class.
    teacher: logits of the same shape, constant: they take no gradient.
    labels: class numbers with the leading axes, or class probabilities (..., C), of which the
      largest is the target.
    weights: weight of each label; see `target_class_kl`.
    standardize: standardise both sides' logits first; see `soft_target_kl`.
    axis_name: device axis of a mapped step; see `target_class_kl`.
    where: mask of what counts; see `target_class_kl`.

  Returns:
    The loss, a scalar, float32 or wider, 0 if nothing counts; NaN if a label that counts is not a
    class; inf if the target is impossible for the student and possible for the teacher. It is a
    cross-entropy: not 0 where both agree.

  Raises:
    ConfigError: if the shapes do not fit together.

  Source: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified
  Approach with Normalized Loss and Customized Soft Labels", ICCV 2023, as the authors' NKDLoss
  (yzd-v/cls_KD).

  >>> z = jnp.array([[0.0, 0.0]])
  >>> target_soft_cross_entropy(z, z, jnp.array([0])).round(4)
  Array(0.3466, dtype=float32)
  """
  what = "target_soft_cross_entropy"
  student, teacher, targets = logits_and_targets(
    what, student, teacher, labels, weights, where, standardize=standardize
  )
  # An impossible target is a constant without a gradient.
  log_p = of_target(log_probabilities(student), targets.chosen)
  log_p = jnp.where(log_p == -jnp.inf, -jnp.inf, log_p)
  p_teacher = jnp.exp(of_target(log_probabilities(teacher), targets.chosen))
  values = jnp.where(p_teacher > 0, -jnp.where(p_teacher > 0, p_teacher, 1.0) * log_p, 0.0)
  return targets.mean(values, axis_name)


def other_classes_cross_entropy(
  student: ArrayLike,
  teacher: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  temperature: float | jax.Array = 1.0,
  squared_temperature: bool = True,
  standardize: bool = False,
  without_target: bool = True,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Cross-entropy between the distributions over the classes that are not the target.

  -T^2 * mean_b sum_c q_t,c * log q_s,c, q = softmax(logits / T) over all classes but the label's.
  It is `other_classes_kl` plus the entropy of the teacher's distribution, a constant.

  Args:
    student: logits (..., C), with any leading axes. A logit of -inf is an impossible class.
    teacher: logits of the same shape, constant: they take no gradient.
    labels: class numbers with the leading axes, or class probabilities (..., C), of which the
      largest is the target.
    weights: weight of each label; see `target_class_kl`.
    temperature: T > 0, a number or a traced scalar.
    squared_temperature: multiply by T^2.
    standardize: standardise both sides' logits first, over all classes.
    without_target: leave out the target class, as in the paper. False compares the distributions
      over all classes.
    axis_name: device axis of a mapped step; see `target_class_kl`.
    where: mask of what counts; see `target_class_kl`.

  Returns:
    The loss, a scalar, float32 or wider, 0 if nothing counts, and for an example for which the
    teacher has no other possible class. With two classes it is 0.

  Raises:
    ConfigError: if the shapes do not fit together, or the temperature is a number that is not
      positive.

  Source: Yang et al., ICCV 2023, as the authors' NKDLoss. Both copies of it in SDD's code
  (shicaiwei123/SDD-CVPR2024) have a mask of 1 at the target where 0 was meant, so that all classes
  stay: `without_target=False`.

  >>> z = jnp.array([[7.0, 0.0, 0.0]])
  >>> other_classes_cross_entropy(z, z, jnp.array([0])).round(4)
  Array(0.6931, dtype=float32)
  """
  what = "other_classes_cross_entropy"
  check_positive("temperature", temperature)
  student, teacher, targets = logits_and_targets(
    what, student, teacher, labels, weights, where, standardize=standardize
  )
  left_out = targets.chosen if without_target else jnp.zeros_like(targets.chosen)
  log_q, student_alone = other_log_probabilities(student, left_out, temperature)
  log_target, teacher_alone = other_log_probabilities(teacher, left_out, temperature)
  # Cross-entropy as divergence plus entropy: its gradient is exactly 0 where both agree.
  values = relative_entropy(log_q, log_target) + entropy(log_target)
  values = between_others(values, student_alone, teacher_alone)
  scale = temperature * temperature if squared_temperature else 1.0
  return scale * targets.mean(values, axis_name)


def normalized_distillation(
  student: Output,
  teacher: Output,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  others_weight: float | jax.Array = 1.5,
  temperature: float | jax.Array = 1.0,
  squared_temperature: bool = True,
  standardize: bool = False,
  without_target: bool = True,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> dict[str, Terms]:
  """Normalised knowledge distillation (NKD): the target, and gamma times the other classes.

  target_soft_cross_entropy + gamma * other_classes_cross_entropy, as two terms.

  Args:
    student: Output with logits (..., C).
    teacher: Output with logits (..., C), constant.
    labels: class numbers with the leading axes, or class probabilities (..., C), of which the
      largest is the target.
    weights: weight of each label; 0 leaves an example out of both terms, as it has no target.
    others_weight: gamma, weight of `other_classes_cross_entropy`.
    temperature: T > 0, of the other classes alone.
    squared_temperature: multiply the other classes' term by T^2.
    standardize: standardise both sides' logits first; see `soft_target_kl`.
    without_target: see `other_classes_cross_entropy`.
    axis_name: device axis of a mapped step; see `target_class_kl`.
    where: mask of what counts; see `target_class_kl`.

  Returns:
    {"target": Terms(logit=...), "others": Terms(logit=...)}, weighted, float32 or wider. Neither is
    0 where both agree: they are cross-entropies.

  Raises:
    ConfigError: for arrays in place of Outputs; if logits are missing, or shapes do not fit; if the
      temperature is not positive.

  Source: Yang et al., ICCV 2023, eq. 7, as the authors' NKDLoss (yzd-v/cls_KD), added to the
  cross-entropy with the labels: T = 1 and gamma = 1.5 for ImageNet, T = 3 and gamma = 3.5 for
  CIFAR-100. Of mixed labels, the largest is the target there, too.

  >>> z = Output(logits=jnp.array([[0.0, 0.0]]))
  >>> terms = normalized_distillation(z, z, [0])
  >>> {name: round(float(part.logit), 4) for name, part in terms.items()}
  {'target': 0.3466, 'others': 0.0}
  """
  what = "normalized_distillation"
  # Widened once: the gradients of both terms are then added in float32.
  ours, theirs = widen(
    logits_of(student, what=what, role="student"), logits_of(teacher, what=what, role="teacher")
  )
  target = target_soft_cross_entropy(
    ours, theirs, labels, weights, standardize=standardize, axis_name=axis_name, where=where
  )
  others = other_classes_cross_entropy(
    ours,
    theirs,
    labels,
    weights,
    temperature=temperature,
    squared_temperature=squared_temperature,
    standardize=standardize,
    without_target=without_target,
    axis_name=axis_name,
    where=where,
  )
  return {"target": Terms(logit=target), "others": Terms(logit=others_weight * others)}
