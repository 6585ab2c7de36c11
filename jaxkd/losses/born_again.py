"""Control losses of born-again networks: CWTM and DKPP.

Each removes a part of the teacher's information: CWTM (confidence weighted by teacher max) keeps
its confidence without the wrong classes, DKPP (dark knowledge with permuted predictions) keeps the
wrong classes' probabilities without their classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses._checks import check_arrays, check_same_shape, logits_of
from jaxkd.losses._counting import keep
from jaxkd.losses._numerics import log_probabilities, widen
from jaxkd.losses.cross_entropy import cross_entropy, effective_weights
from jaxkd.losses.kd import soft_target_kl
from jaxkd.types import Output, Terms


def confidence_weighted_cross_entropy(
  student: ArrayLike,
  teacher: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Cross-entropy with the labels, each example weighted by the teacher's largest probability.

  sum_b w_b * ce_b / sum_b w_b, with w_b = m_b * max_c softmax(teacher_b)_c, where m are the
  `weights`. A teacher of equal confidence for all examples gives `cross_entropy`.

  Args:
    student: logits (..., C), with any leading axes.
    teacher: logits of the same shape, constant. Only the largest probability of each is used.
    labels: class numbers with the leading axes, or probabilities (..., C).
    weights: (B,) or with all leading axes; 0 leaves a label out. None weights all by 1.
    axis_name: device axis of a mapped step; the weights then sum to 1 over the global batch, and
      `lax.pmean` of value and gradient is that of the global batch, as in `cross_entropy`.
    where: mask (B,) or with all leading axes of the logits, nonzero where a position counts; the
      rest is padding and may hold any values. None: all count.

  Returns:
    The loss, a scalar, float32 or wider; NaN if a label that counts is not a class, as in
    `cross_entropy`.

  Raises:
    ConfigError: if the shapes do not fit together.

  Source: Furlanello et al., "Born-Again Neural Networks", ICML 2018, confidence weighted by
  teacher max (CWTM). Only the abstract could be sourced, and no code is published: this follows
  the definition commonly given, the weights normalised over the mini-batch.

  >>> z = jnp.zeros((2, 4))
  >>> confidence_weighted_cross_entropy(z, z, jnp.array([0, 3])).round(4)
  Array(1.3863, dtype=float32)
  """
  what = "confidence_weighted_cross_entropy"
  student, teacher = widen(student, lax.stop_gradient(teacher), what=what)
  check_same_shape(what, student, teacher)
  weights = effective_weights(what, student, weights, where)
  if weights is None:
    confidence = jnp.exp(jnp.max(log_probabilities(teacher), axis=-1))
  else:
    (teacher,) = keep(weights != 0, teacher)
    confidence = weights * jnp.exp(jnp.max(log_probabilities(teacher), axis=-1))
  return cross_entropy(student, labels, confidence, axis_name=axis_name)


def permute_wrong_classes(logits: ArrayLike, rng: jax.Array) -> jax.Array:
  """Permute each example's logits at random, except the largest.

  Args:
    logits: (..., C), with any leading axes. Of equal largest logits, the first stays in place.
    rng: PRNG key; every example (or position) gets its own uniformly drawn permutation.

  Returns:
    (..., C), of the same dtype. The largest logit keeps its class. Every row keeps its values, so
    softmax at any temperature keeps its set of probabilities.

  Raises:
    ConfigError: if logits are not (..., C) with one leading axis or more.

  Source: Furlanello et al., ICML 2018; see `permuted_soft_target_kl`.

  >>> permute_wrong_classes(jnp.array([[3.0, 1.0, 1.0]]), jax.random.key(0))
  Array([[3., 1., 1.]], dtype=float32)
  """
  check_arrays("permute_wrong_classes", logits)
  logits = jnp.asarray(logits)
  if logits.ndim < 2:
    raise ConfigError(f"permute_wrong_classes: logits {logits.shape} are not (B, C) or (B, ..., C)")
  rows = logits.reshape(-1, logits.shape[-1])
  # Rotate each row until its largest logit is first, permute the others, and rotate back.
  first = jnp.argmax(rows, axis=-1)[:, None]
  indices = jnp.arange(rows.shape[-1])[None]
  rotated = jnp.take_along_axis(rows, (indices + first) % rows.shape[-1], axis=-1)
  others = jax.random.permutation(rng, rotated[:, 1:], axis=1, independent=True)
  rotated = jnp.concatenate([rotated[:, :1], others], axis=1)
  rotated = jnp.take_along_axis(rotated, (indices - first) % rows.shape[-1], axis=-1)
  return rotated.reshape(logits.shape)


def permuted_soft_target_kl(
  student: ArrayLike,
  teacher: ArrayLike,
  rng: jax.Array,
  *,
  temperature: float | jax.Array = 1.0,
  squared_temperature: bool = True,
  standardize: bool = False,
  where: ArrayLike | None = None,
) -> jax.Array:
  """KL divergence to the teacher's distribution with permuted wrong classes.

  `soft_target_kl(student, permute_wrong_classes(teacher))`.

  Args:
    student: logits (..., C), with any leading axes.
    teacher: logits of the same shape, constant.
    rng: PRNG key; use a new one in every step.
    temperature: T > 0, a number or a traced scalar.
    squared_temperature: multiply by T^2.
    standardize: both sides' logits first get mean 0 and standard deviation 1 over the classes, see
      `soft_target_kl`. A permutation changes neither.
    where: mask of what counts; see `soft_target_kl`. The permutations drawn depend on the shape of
      the logits, padding included.

  Returns:
    The loss, a scalar, float32 or wider. With two classes it equals `soft_target_kl`.

  Raises:
    ConfigError: if the shapes differ, or the temperature is a number that is not positive.

  Source: Furlanello et al., "Born-Again Neural Networks", ICML 2018, dark knowledge with permuted
  predictions (DKPP). Only the abstract could be sourced, and no code is published: this follows
  the definition commonly given, in which the largest probability stays and each example has its
  own permutation. The KL differs from a cross-entropy by a constant.

  >>> z = jnp.array([[2.0, 0.0]])
  >>> permuted_soft_target_kl(z, z, jax.random.key(0))
  Array(0., dtype=float32)
  """
  check_arrays("permuted_soft_target_kl", student, teacher)
  teacher = permute_wrong_classes(lax.stop_gradient(teacher), rng)
  return soft_target_kl(
    student,
    teacher,
    temperature=temperature,
    squared_temperature=squared_temperature,
    standardize=standardize,
    where=where,
  )


def confidence_weighted_by_teacher_max(
  student: Output,
  teacher: Output,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> Terms:
  """CWTM: cross-entropy with the labels, weighted by the previous generation's confidence.

  `confidence_weighted_cross_entropy`, which replaces the label term.

  Args:
    student: Output with logits (..., C).
    teacher: Output with logits (..., C), constant.
    labels: class numbers with the leading axes, or probabilities (..., C).
    weights: (B,) or with all leading axes; 0 leaves a label out.
    axis_name: device axis of a mapped step: the weights are normalised over the global batch.
    where: mask of what counts; see `confidence_weighted_cross_entropy`.

  Returns:
    Terms(logit=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, missing logits, or shapes that do not fit.

  Source: Furlanello et al., "Born-Again Neural Networks", ICML 2018; see
  `confidence_weighted_cross_entropy` for what could be sourced.

  >>> z = Output(logits=jnp.zeros((2, 4)))
  >>> confidence_weighted_by_teacher_max(z, z, jnp.array([0, 3])).logit.round(4)
  Array(1.3863, dtype=float32)
  """
  what = "confidence_weighted_by_teacher_max"
  value = confidence_weighted_cross_entropy(
    logits_of(student, what=what, role="student"),
    logits_of(teacher, what=what, role="teacher"),
    labels,
    weights,
    axis_name=axis_name,
    where=where,
  )
  return Terms(logit=value)


def dark_knowledge_permuted(
  student: Output,
  teacher: Output,
  rng: jax.Array,
  *,
  temperature: float | jax.Array = 1.0,
  squared_temperature: bool = True,
  standardize: bool = False,
  where: ArrayLike | None = None,
) -> Terms:
  """DKPP: soft targets with permuted wrong classes, without information on class similarity.

  `permuted_soft_target_kl`, which replaces the soft term.

  Args:
    student: Output with logits (..., C).
    teacher: Output with logits (..., C), constant.
    rng: PRNG key, such as `Context.rng`.
    temperature: T > 0.
    squared_temperature: multiply by T^2.
    standardize: both sides' logits first get mean 0 and standard deviation 1 over the classes, see
      `soft_target_kl`. A permutation changes neither.
    where: mask of what counts; see `permuted_soft_target_kl`.

  Returns:
    Terms(logit=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, logits that are missing or differ in shape, or a
      temperature that is not positive.

  Source: Furlanello et al., "Born-Again Neural Networks", ICML 2018; see
  `permuted_soft_target_kl` for what could be sourced.

  >>> z = Output(logits=jnp.array([[2.0, 0.0]]))
  >>> float(dark_knowledge_permuted(z, z, jax.random.key(0)).total)
  0.0
  """
  what = "dark_knowledge_permuted"
  value = permuted_soft_target_kl(
    logits_of(student, what=what, role="student"),
    logits_of(teacher, what=what, role="teacher"),
    rng,
    temperature=temperature,
    squared_temperature=squared_temperature,
    standardize=standardize,
    where=where,
  )
  return Terms(logit=value)
