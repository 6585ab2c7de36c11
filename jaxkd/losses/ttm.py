"""Transformed teacher matching (TTM): powers of the teacher's probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.losses._checks import check_positive, check_same_shape, logits_of
from jaxkd.losses._counting import counted_positions, keep, mean
from jaxkd.losses._numerics import log_probabilities, relative_entropy, widen
from jaxkd.losses._standardization import standardized
from jaxkd.types import Output, Terms


def transformed_teacher_kl(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  exponent: float | jax.Array = 0.1,
  weighted: bool = False,
  standardize: bool = False,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Divergence from the student's distribution to a power transform of the teacher's.

  mean_b n_b * KL(q_b || softmax(student_b)), q = p^l / sum_c p_c^l, p = softmax(teacher), with
  n_b = sum_c p_bc^l if `weighted`, else 1.

  q is softmax(l * teacher): a temperature of 1 / l for the teacher alone. n is 1 for a certain
  teacher, and up to C^(1 - l) for an uncertain one.

  Args:
    student: logits (..., C), with any leading axes. A logit of -inf is an impossible class, on
      either side.
    teacher: logits of the same shape, constant: they take no gradient.
    exponent: l > 0, a number or a traced scalar. 1 is the plain divergence.
    weighted: weight each example by n_b (WTTM). The weights are not normalised over the batch.
    standardize: standardise both sides' logits first; see `soft_target_kl`.
    where: mask (B,) or with all leading axes of the logits, nonzero where a position counts; the
      rest is padding and may hold any values. None: all count.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts. Where both sides agree it is 0 only
    if l = 1. It is inf if a class is impossible for the student and possible for the teacher.

  Raises:
    ConfigError: if the shapes differ, `where` does not fit them, or the exponent is a number that
      is not positive.

  Source: Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024,
  as the authors' TTM and WTTM (zkxufo/TTM). They raise probabilities to the power; here logits are
  multiplied and n comes from logarithms, which do not underflow.

  >>> z = jnp.array([[2.0, 0.0]])
  >>> transformed_teacher_kl(z, z, exponent=1.0)
  Array(0., dtype=float32)
  """
  check_positive("exponent", exponent)
  what = "transformed_teacher_kl"
  student, teacher = widen(student, lax.stop_gradient(teacher), what=what)
  check_same_shape(what, student, teacher, "both must score the same classes, (..., C)")
  counted = counted_positions(what, where, student)
  student, teacher = keep(counted, student, teacher)
  if standardize:
    student, teacher = standardized(student), standardized(teacher)
  log_q = log_probabilities(teacher, 1.0 / exponent)
  divergence = relative_entropy(log_probabilities(student), log_q)
  if weighted:
    divergence = power_sum(teacher, log_q, exponent) * divergence
  return mean(divergence, counted)


def transformed_teacher_matching(
  student: Output,
  teacher: Output,
  *,
  exponent: float | jax.Array = 0.1,
  weighted: bool = False,
  standardize: bool = False,
  where: ArrayLike | None = None,
) -> Terms:
  """Transformed teacher matching (TTM), or its weighted form (WTTM).

  `transformed_teacher_kl`: KD without a temperature on the student's side, and without T^2.

  Args:
    student: Output with logits (..., C).
    teacher: Output with logits (..., C), constant.
    exponent: l > 0, of the teacher's probabilities.
    weighted: weight each example by the power sum of the teacher's probabilities (WTTM).
    standardize: standardise both sides' logits first; see `soft_target_kl`.
    where: mask of what counts; see `transformed_teacher_kl`.

  Returns:
    Terms(logit=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, logits that are missing or differ in shape, or an
      exponent that is not positive.

  Source: Zheng and Yang, ICLR 2024, as the authors' code (zkxufo/TTM). Its recipe for TTM has
  l = 0.1 and the weight 45, that for WTTM on top of CRD l = 0.2 and the weight 4; the default of
  its script is l = 1.

  >>> z = Output(logits=jnp.array([[2.0, 0.0]]))
  >>> float(transformed_teacher_matching(z, z, exponent=1.0, weighted=True).logit)
  0.0
  """
  what = "transformed_teacher_matching"
  value = transformed_teacher_kl(
    logits_of(student, what=what, role="student"),
    logits_of(teacher, what=what, role="teacher"),
    exponent=exponent,
    weighted=weighted,
    standardize=standardize,
    where=where,
  )
  return Terms(logit=value)


def power_sum(logits: jax.Array, log_q: jax.Array, exponent: ArrayLike) -> jax.Array:
  """Return sum_c p_c^l, p = softmax(logits), from log q = log softmax(l * logits).

  p_c^l / q_c is the same for every class, so it is that of the most probable one.
  """
  largest = jnp.max(log_probabilities(logits), axis=-1)
  return jnp.exp(exponent * largest - jnp.max(log_q, axis=-1))
