"""Born-again controls: what is matched is how sure the previous generation was, or of what.

Two ways to take a part of the teacher's knowledge away and see what is left: its confidence
without the wrong classes, and the wrong classes' probabilities without the classes.
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
  """Cross-entropy with the labels, examples weighted by how sure the teacher is of them.

  sum_b w_b * ce_b with w_b = m_b * max_c softmax(teacher_b)_c, divided by their sum over the
  batch, where m are the `weights`. A teacher that is equally sure of all gives `cross_entropy`.

  Args:
    student: logits (..., C), with any leading axes.
    teacher: logits of the same shape, constant. Only the largest probability of each is used.
    labels: class numbers of the leading axes, or probabilities (..., C).
    weights: (B,), or all leading axes; 0 leaves a label out. None weighs all alike.
    axis_name: the device axis of a mapped step; the weights then sum to 1 over the global batch,
      and `lax.pmean` of value and gradient is that of the global batch, as in `cross_entropy`.
    where: (B,), or all leading axes of the logits, nonzero for what counts; the rest is padding
      and may hold anything. None counts all.

  Returns:
    The loss, a scalar, float32 or wider; NaN if a label that counts is no class, as in
    `cross_entropy`.

  Raises:
    ConfigError: if the shapes do not belong together.

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
  """Every example's logits, all but the largest dealt out at random among their classes.

  Args:
    logits: (..., C), with any leading axes. Of several largest, the first stays.
    rng: a PRNG key; every example, or position, draws its own permutation, uniformly.

  Returns:
    (..., C), of the same dtype. The largest logit keeps its class; every row keeps its values, so
    softmax at any temperature keeps its probabilities.

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
  # Rows are turned until the largest comes first, and back.
  first = jnp.argmax(rows, axis=-1)[:, None]
  places = jnp.arange(rows.shape[-1])[None]
  turned = jnp.take_along_axis(rows, (places + first) % rows.shape[-1], axis=-1)
  others = jax.random.permutation(rng, turned[:, 1:], axis=1, independent=True)
  turned = jnp.concatenate([turned[:, :1], others], axis=1)
  turned = jnp.take_along_axis(turned, (places - first) % rows.shape[-1], axis=-1)
  return turned.reshape(logits.shape)


def permuted_soft_target_kl(
  student: ArrayLike,
  teacher: ArrayLike,
  rng: jax.Array,
  *,
  temperature: float | jax.Array = 1.0,
  squared_temperature: bool = True,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Divergence from the teacher's distribution with the wrong classes' probabilities permuted.

  `soft_target_kl(student, permute_wrong_classes(teacher))`.

  Args:
    student: logits (..., C), with any leading axes.
    teacher: logits of the same shape, constant.
    rng: a PRNG key; draw a new one every step.
    temperature: T > 0, a number or a traced scalar.
    squared_temperature: multiply by T^2.
    where: what counts at all; see `soft_target_kl`. The draws of what counts depend on the shape
      of the logits, padding included.

  Returns:
    The loss, a scalar, float32 or wider. With two classes it is `soft_target_kl`.

  Raises:
    ConfigError: if the shapes differ, or the temperature is a number that is not positive.

  Source: Furlanello et al., "Born-Again Neural Networks", ICML 2018, dark knowledge with permuted
  predictions (DKPP). Only the abstract could be sourced, and no code is published: that the
  largest probability stays and each example has its own permutation is the definition commonly
  given. The KL differs from a cross-entropy by a constant.

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
  """CWTM: the labels alone, examples weighted by how sure the previous generation was of them.

  `confidence_weighted_cross_entropy`, in place of the label term.

  Args:
    student: its logits (..., C) are used.
    teacher: its logits (..., C) are used; constant.
    labels: class numbers of the leading axes, or probabilities (..., C).
    weights: (B,), or all leading axes; 0 leaves a label out.
    axis_name: the device axis of a mapped step: the weights are normalised over the global batch.
    where: what counts at all; see `confidence_weighted_cross_entropy`.

  Returns:
    Terms(logit=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, if logits are missing or the shapes do not belong
      together.

  Source: Furlanello et al., "Born-Again Neural Networks", ICML 2018; see
  `confidence_weighted_cross_entropy` for what could be sourced.

  >>> z = Output(logits=jnp.zeros((2, 4)))
  >>> confidence_weighted_by_teacher_max(z, z, jnp.array([0, 3])).logit.round(4)
  Array(1.3863, dtype=float32)
  """
  what = "confidence_weighted_by_teacher_max"
  value = confidence_weighted_cross_entropy(
    logits_of(student, what=what, who="student"),
    logits_of(teacher, what=what, who="teacher"),
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
  where: ArrayLike | None = None,
) -> Terms:
  """DKPP: soft targets whose wrong classes are permuted, so that they say nothing of likeness.

  `permuted_soft_target_kl`, in place of the soft term.

  Args:
    student: its logits (..., C) are used.
    teacher: its logits (..., C) are used; constant.
    rng: a PRNG key, as of `Context.rng`.
    temperature: T > 0.
    squared_temperature: multiply by T^2.
    where: what counts at all; see `permuted_soft_target_kl`.

  Returns:
    Terms(logit=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, if logits are missing or differ in shape, or the
      temperature is not positive.

  Source: Furlanello et al., "Born-Again Neural Networks", ICML 2018; see
  `permuted_soft_target_kl` for what could be sourced.

  >>> z = Output(logits=jnp.array([[2.0, 0.0]]))
  >>> float(dark_knowledge_permuted(z, z, jax.random.key(0)).total)
  0.0
  """
  what = "dark_knowledge_permuted"
  value = permuted_soft_target_kl(
    logits_of(student, what=what, who="student"),
    logits_of(teacher, what=what, who="teacher"),
    rng,
    temperature=temperature,
    squared_temperature=squared_temperature,
    where=where,
  )
  return Terms(logit=value)
