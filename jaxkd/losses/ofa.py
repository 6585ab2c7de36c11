"""OFA, one-for-all distillation: cross-entropies with a target enhanced at the label's class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses._checks import check_outputs, check_positive, check_same_shape, logits_of
from jaxkd.losses._counting import counted_positions, keep, mean
from jaxkd.losses._numerics import log_probabilities, widen
from jaxkd.losses._standardization import standardized
from jaxkd.losses.cross_entropy import effective_weights
from jaxkd.types import Output, Terms


def enhanced_cross_entropy(
  student: ArrayLike,
  teacher: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  exponent: float = 1.0,
  temperature: float | jax.Array = 1.0,
  standardize: bool = False,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Cross-entropy with the teacher's distribution, in which the label's class is enhanced.

  -mean_b sum_c ((p_t + m)^exponent - m)_c * log p_s,c, with p = softmax(logits / T) on both sides
  and m = 1 at the class of the label, 0 elsewhere. There is no factor T^2. With exponent 1 it is
  the cross-entropy with p_t.

  Args:
    student: logits (..., C), with any leading axes. A logit of -inf is an impossible class, on
      either side: 0 log 0 = 0.
    teacher: logits of the same shape, constant.
    labels: class numbers with the leading axes; or class probabilities (..., C), of which only the
      class of the largest is used.
    weights: weights of the labels, (B,) or with all leading axes; m is 0 everywhere where the
      weight is 0, and other weights have no effect. None: all labels are known.
    exponent: > 0; above 1 it enhances the label's class.
    temperature: T > 0, a number or a traced scalar.
    standardize: give the logits of both sides mean 0 and standard deviation 1 over the classes
      first.
    where: mask (B,) or with all leading axes of the logits, nonzero where a position counts; the
      rest is padding and may hold any values. None: all count.

  Returns:
    The loss, a scalar, float32 or wider, >= 0: sum over classes, mean over what counts. It is a
    cross-entropy, so not 0 where both agree. It is NaN if a class number that counts is outside
    0 to C - 1, and inf if a class is impossible for the student and possible for the teacher.

  Raises:
    ConfigError: if the shapes do not fit together, or the exponent or the temperature is a number
      that is not positive.

  Source: Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
  Distillation", NeurIPS 2023, eq. 7, as `ofa_loss` of the authors' code (Hao840/OFAKD), which takes
  the logarithm of a softmax and is infinite where a probability underflows.

  >>> z = jnp.zeros((1, 2))
  >>> enhanced_cross_entropy(z, z, jnp.array([0]), exponent=2.0).round(4)
  Array(1.0397, dtype=float32)
  """
  what = "enhanced_cross_entropy"
  check_positive("exponent", exponent)
  check_positive("temperature", temperature)
  student, teacher = widen(student, lax.stop_gradient(teacher), what=what)
  check_same_shape(what, student, teacher, "both must score the same classes, (..., C)")
  counted = counted_positions(what, where, student)
  known = effective_weights(what, student, weights, where)
  chosen, is_class = _label_classes(what, labels, student)
  student, teacher = keep(counted, student, teacher)
  if standardize:
    student, teacher = standardized(student), standardized(teacher)
  log_p = log_probabilities(teacher, temperature)
  others = jnp.exp(exponent * log_p)
  enhanced = jnp.expm1(exponent * jnp.log1p(jnp.exp(log_p)))
  if known is not None:
    chosen, is_class = chosen & (known != 0)[..., None], is_class | (known == 0)
  target = jnp.where(chosen, enhanced, others)
  log_q = log_probabilities(student, temperature)
  impossible = log_q == -jnp.inf
  products = target * jnp.where(impossible, 0.0, log_q)
  each = -jnp.sum(jnp.where(impossible & (target > 0), -jnp.inf, products), axis=-1)
  # A factor, not a value: the gradient is then NaN, too.
  return mean(each * jnp.where(is_class, 1.0, jnp.nan), counted)


def one_for_all(
  exits: Sequence[Output],
  teacher: Output,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  exponent: float = 1.0,
  stage_exponents: Sequence[float] | None = None,
  temperature: float | jax.Array = 1.0,
  standardize: bool = False,
  where: ArrayLike | None = None,
) -> Mapping[str, Terms]:
  """One-for-all distillation (OFA): `enhanced_cross_entropy` at every exit of the student.

  Every stage of the student has a head, so that networks of any architectures are compared by their
  logits.

  Args:
    exits: Outputs with logits (..., C): those of the heads, and last the student's own.
    teacher: Output with logits of the same shape, constant.
    labels: as in `enhanced_cross_entropy`.
    weights: weights of the labels, 0 for an unknown one.
    exponent: of the student's own logits.
    stage_exponents: one for each head; None takes `exponent` for all.
    temperature: T > 0.
    standardize: compare standardised logits; see `enhanced_cross_entropy`.
    where: mask of what counts; see `enhanced_cross_entropy`.

  Returns:
    {"stages": Terms(logit=sum over heads), "logits": Terms(logit=...)}, float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, no exits, logits that are missing or differ in
      shape, and another number of exponents than heads.

  Source: Hao et al., NeurIPS 2023, as `OFA.forward` of the authors' code, where both parts and the
  cross-entropy have weight 1 and one exponent is used for all.

  >>> z = Output(logits=jnp.zeros((1, 2)))
  >>> one_for_all([z, z], z, jnp.array([0]))["stages"].logit.round(4)
  Array(0.6931, dtype=float32)
  """
  what = "one_for_all"
  check_outputs(what, exits, role="student")
  if not exits:
    raise ConfigError(f"{what}: there are no exits: give at least the student's own Output")
  exponents = [exponent] * (len(exits) - 1) if stage_exponents is None else list(stage_exponents)
  if len(exponents) != len(exits) - 1:
    raise ConfigError(
      f"{what}: stage_exponents are {len(exponents)}, heads {len(exits) - 1}: give one for each"
    )
  z = logits_of(teacher, what=what, role="teacher")
  each = [
    enhanced_cross_entropy(
      logits_of(output, what=what, role="student"),
      z,
      labels,
      weights,
      exponent=power,
      temperature=temperature,
      standardize=standardize,
      where=where,
    )
    for output, power in zip(exits, [*exponents, exponent], strict=True)
  ]
  heads = sum(each[:-1], jnp.zeros_like(each[-1]))
  return {"stages": Terms(logit=heads), "logits": Terms(logit=each[-1])}


def _label_classes(what: str, labels: ArrayLike, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Return the one-hot labels (..., C) as bool, and a mask (...) of those that are classes.

  Raises:
    ConfigError: with both shapes, if the labels do not belong to the logits.
  """
  labels = jnp.asarray(labels)
  hard = labels.shape == logits.shape[:-1] and jnp.issubdtype(labels.dtype, jnp.integer)
  if not hard and labels.shape != logits.shape:
    raise ConfigError(
      f"{what}: labels {labels.shape} of {labels.dtype} do not belong to logits {logits.shape}: "
      f"they must be class numbers {logits.shape[:-1]}, integer, or class probabilities "
      f"{logits.shape}"
    )
  found = labels.astype(jnp.int32) if hard else jnp.argmax(labels, axis=-1)
  numbers = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  return found[..., None] == numbers, (found >= 0) & (found < logits.shape[-1])
