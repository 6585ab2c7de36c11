"""CTKD, curriculum temperature: softened logits at a temperature that learns as well."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses._checks import check_positive, check_same_shape, is_number, logits_of
from jaxkd.losses._counting import counted_positions, keep, mean
from jaxkd.losses._numerics import log_probabilities, relative_entropy, widen
from jaxkd.losses._standardization import standardized
from jaxkd.types import Output, Terms

# Bound of |x|, x = log p - log q, where the series below is used, and its number of terms.
_NEAR = 2.0
_POWERS = 25


def temperature_kl(
  student: ArrayLike,
  teacher: ArrayLike,
  temperature: ArrayLike = 4.0,
  *,
  standardize: bool = False,
  target_eps: float = 0.0,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Kullback-Leibler divergence of softened distributions, at a temperature that takes a gradient.

  mean_b T_b^2 sum_c q * (log q - log p_s), with p_s = softmax(student / T_b) and
  q = softmax(teacher / T_b) + target_eps. The gradient for T goes through T^2 and through both
  distributions.

  Args:
    student: logits (..., C), with any leading axes. A logit of -inf is an impossible class, on
      either side: 0 log 0 = 0.
    teacher: logits of the same shape, constant.
    temperature: T > 0: a number, a scalar, an array of one element, or an array with the logits'
      leading axes, one for each example.
    standardize: give the logits of both sides mean 0 and standard deviation 1 over the classes
      first.
    target_eps: added to every probability of the teacher.
    where: mask (B,) or with all leading axes of the logits, nonzero where a position counts; the
      rest is padding and may hold any values, as may its temperatures. None: all count.

  Returns:
    The loss, a scalar, float32 or wider: sum over classes, mean over what counts, 0 if nothing
    does. Without target_eps it is >= 0, and exactly 0 with gradients of 0 where both agree. It is
    inf if a class is impossible for the student and possible for the teacher.

  Raises:
    ConfigError: if the shapes do not fit together, or the temperature is a number that is not
      positive.

  Source: Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI 2023: `DistillKL` of
  the authors' code (zhengli97/CTKD). target_eps=1e-7 with a temperature for each example is the
  KL_Loss of its README.

  >>> z = jnp.array([[1.0, 0.0]])
  >>> round(float(temperature_kl(z, -z, 2.0)), 4)
  0.4898
  """
  what = "temperature_kl"
  check_positive("temperature", temperature)
  student, teacher = widen(student, lax.stop_gradient(teacher), what=what)
  check_same_shape(what, student, teacher, "both must score the same classes, (..., C)")
  counted = counted_positions(what, where, student)
  student, teacher = keep(counted, student, teacher)
  if standardize:
    student, teacher = standardized(student), standardized(teacher)
  each: ArrayLike = temperature
  if not is_number(temperature):
    each = jnp.asarray(temperature).astype(student.dtype)
    if each.size == 1:
      each = each.reshape(())
    elif each.shape != student.shape[:-1]:
      raise ConfigError(
        f"{what}: temperature {each.shape} does not belong to logits {student.shape}: expected a "
        f"scalar or {student.shape[:-1]}"
      )
    elif counted is not None:
      each = jnp.where(counted, each, 1.0)
  each = jnp.broadcast_to(jnp.asarray(each, student.dtype), student.shape[:-1])
  if target_eps:
    return mean(_tempered(student, teacher, each, target_eps), counted)
  return mean(_tempered_exactly(student, teacher, each), counted)


def curriculum_temperature(
  student: Output,
  teacher: Output,
  temperature: ArrayLike = 4.0,
  *,
  standardize: bool = False,
  target_eps: float = 0.0,
  where: ArrayLike | None = None,
) -> Terms:
  """Curriculum temperature distillation (CTKD): `temperature_kl` of logits.

  The temperature takes the gradient of the loss. In training it comes from
  `jaxkd.adapters.LearnedTemperature` through `scaled_gradient`, with a factor that falls from 0 to
  -1, so that it learns to increase the loss while the student learns to reduce it.

  Args:
    student: Output with logits (..., C).
    teacher: Output with logits (..., C), constant.
    temperature: T > 0, for all or for each example; see `temperature_kl`.
    standardize: give the logits of both sides mean 0 and standard deviation 1 over the classes.
    target_eps: added to every probability of the teacher.
    where: mask of what counts; see `temperature_kl`.

  Returns:
    Terms(logit=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs; if logits are missing or differ in shape.

  Source: Li et al., AAAI 2023, as in the authors' code; `standardize` as Sun et al., CVPR 2024,
  whose copy of that code inverts the flag: --logit_stand chooses the plain divergence.

  >>> z = Output(logits=jnp.array([[1.0, 0.0]]))
  >>> float(curriculum_temperature(z, z, 15.6).total)
  0.0
  """
  what = "curriculum_temperature"
  ours = logits_of(student, what=what, role="student")
  theirs = logits_of(teacher, what=what, role="teacher")
  options: dict[str, Any] = {"standardize": standardize, "target_eps": target_eps, "where": where}
  return Terms(logit=temperature_kl(ours, theirs, temperature, **options))


@jax.custom_jvp
def scaled_gradient(x: jax.Array, factor: ArrayLike) -> jax.Array:
  """Return x; its gradient is multiplied by `factor`, which may be negative and takes none.

  >>> jax.grad(lambda x: scaled_gradient(x, -0.5) ** 2)(3.0)
  Array(-3., dtype=float32, weak_type=True)
  """
  return x


@scaled_gradient.defjvp
def _scaled_gradient_jvp(primals, tangents):
  return primals[0], (primals[1] * tangents[0]).astype(tangents[0].dtype)


def _tempered(
  student: jax.Array, teacher: jax.Array, temperature: jax.Array, target_eps: float = 0.0
) -> jax.Array:
  """Return T^2 KL (...) of logits (..., C) at temperatures (...)."""
  log_p, log_q = (log_probabilities(z, temperature[..., None]) for z in (student, teacher))
  if target_eps:
    log_q = jnp.log(jnp.exp(log_q) + target_eps)
  # `relative_entropy` adds the sum of p - q, which is that of the added probabilities.
  divergence = relative_entropy(log_p, log_q) + target_eps * student.shape[-1]
  return jnp.square(temperature) * divergence


@jax.custom_jvp
def _tempered_exactly(student: jax.Array, teacher: jax.Array, temperature: jax.Array) -> jax.Array:
  """Return `_tempered`, whose derivative by T does not cancel at high temperatures.

  T^2 KL tends to a constant there: of its derivative by T, terms of size T KL cancel, which leaves
  two digits in float32. With x = log p - log q and the entropy H of q, it is also
  T sum_c q (2 (e^x - 1 - x - x^2 / 2) - (e^x - 1 - x) (log p + H)), whose terms are of the size of
  the result. This form is used where all |x| are below 2; it cancels for large ones.
  """
  return _tempered(student, teacher, temperature)


@_tempered_exactly.defjvp
def _tempered_exactly_jvp(primals, tangents):
  student, teacher, temperature = primals
  value, moved = jax.jvp(lambda s: _tempered(s, teacher, temperature), (student,), (tangents[0],))
  by_temperature = (lambda t: _tempered(student, teacher, t), (temperature,))
  _, slope = jax.jvp(*by_temperature, (jnp.ones_like(temperature),))
  near, exact = _small_slope(student, teacher, temperature)
  return value, moved + jnp.where(near, exact, slope) * tangents[2]


def _small_slope(
  student: jax.Array, teacher: jax.Array, temperature: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Return (near, slope): where all |x| are below 2, and the derivative of T^2 KL by T there."""
  impossible = (student == -jnp.inf) & (teacher == -jnp.inf)

  def mean_by_q(x: jax.Array) -> jax.Array:
    return jnp.sum(q * x, axis=-1, keepdims=True)

  # Not by logarithms of probabilities, which are rounded to a part of log C.
  q = jnp.exp((teacher - jnp.max(teacher, axis=-1, keepdims=True)) / temperature[..., None])
  q = q / jnp.sum(q, axis=-1, keepdims=True)
  student, teacher = (jnp.where(impossible, 0.0, z) for z in (student, teacher))
  gap = student - teacher
  gap = (gap - mean_by_q(gap)) / temperature[..., None]
  near = jnp.all(impossible | (jnp.abs(gap) < _NEAR / 2), axis=-1)
  gap = jnp.where(near[..., None] & ~impossible, gap, 0.0)
  shift = jnp.log1p(mean_by_q(jnp.expm1(gap)))  # of the normalisers
  x = gap - shift
  cubic = x * x * x * _exponential_rest(x)
  square = x * x / 2 + cubic
  largest = jnp.max(jnp.where(impossible, -jnp.inf, student), axis=-1, keepdims=True)
  student = jnp.where(near[..., None] & ~impossible, student - largest, 0.0)
  surprise = (student - mean_by_q(student)) / temperature[..., None] - shift
  return near, temperature * jnp.sum(q * (2 * cubic - square * surprise), axis=-1)


def _exponential_rest(x: jax.Array) -> jax.Array:
  """Return (e^x - 1 - x - x^2 / 2) / x^3 by its series, to float64's precision for |x| < 2."""
  total = jnp.zeros_like(x)
  for power in reversed(range(_POWERS)):
    total = total * x + 1.0 / math.factorial(power + 3)
  return total
