"""Multi-exit distillation: exits of a network learn the predictions of deeper exits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import unknown_name
from jaxkd.losses._checks import (
  check_fraction,
  check_outputs,
  check_positive,
  check_same_shape,
  logits_of,
)
from jaxkd.losses._counting import counted_positions, keep, mean
from jaxkd.losses._numerics import (
  entropy,
  log_probabilities,
  mean_log_probabilities,
  relative_entropy,
  widen,
)
from jaxkd.losses._standardization import standardized
from jaxkd.types import Output, Terms

Teachers = Literal["last", "ensemble", "later"]
Average = Literal["sum", "mean"]
Divergence = Literal["cross_entropy", "kl"]

_TEACHERS: tuple[str, ...] = get_args(Teachers)
_AVERAGES: tuple[str, ...] = get_args(Average)
_DIVERGENCES: tuple[str, ...] = get_args(Divergence)


def soft_cross_entropy(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  temperature: float | jax.Array = 1.0,
  squared_temperature: bool = True,
  detached: bool = True,
  standardize: bool = False,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Cross-entropy between two softened distributions: T^2 * mean_b sum_c -p_t * log p_s.

  Equal to `soft_target_kl` plus the teacher's entropy. With a detached teacher the gradient is
  that of `soft_target_kl`, exactly 0 where both agree.

  Args:
    student: logits (..., C), with any leading axes. A logit of -inf is an impossible class, on
      either side: 0 log 0 = 0.
    teacher: logits of the same shape.
    temperature: T > 0, a number or a traced scalar.
    squared_temperature: multiply by T^2.
    detached: the teacher takes no gradient.
    standardize: both sides' logits first get mean 0 and standard deviation 1 over the classes, see
      `soft_target_kl`.
    where: mask (B,) or with all leading axes of the logits, nonzero where a position counts; the
      rest is padding and may hold any values. None: all count.

  Returns:
    The loss, a scalar, float32 or wider: sum over classes, mean over what counts, 0 if nothing
    does. It is inf if a class is impossible for the student and possible for the teacher.

  Raises:
    ConfigError: if the shapes differ, `where` does not fit them, or the temperature is a number
      that is not positive.

  Source: Phuong & Lampert, "Distillation-Based Training for Multi-Exit Architectures", ICCV 2019,
  and Zhang et al., "Be Your Own Teacher", ICCV 2019, as their published code; that of the latter's
  authors has no T^2.

  >>> soft_cross_entropy(jnp.zeros((1, 2)), jnp.zeros((1, 2))).round(4)
  Array(0.6931, dtype=float32)
  """
  check_positive("temperature", temperature)
  what = "soft_cross_entropy"
  teacher = lax.stop_gradient(teacher) if detached else teacher
  student, teacher = widen(student, teacher, what=what)
  check_same_shape("logits", student, teacher, "both must score the same classes, (..., C)")
  counted = counted_positions(what, where, student)
  kept = _kept(counted, standardize, student, teacher)
  log_p_student, log_p_teacher = (log_probabilities(z, temperature) for z in kept)
  scale = temperature * temperature if squared_temperature else 1.0
  return scale * _mean_divergence(log_p_student, log_p_teacher, "cross_entropy", counted)


def multi_exit(
  exits: Sequence[Output],
  *,
  temperature: float | jax.Array = 1.0,
  squared_temperature: bool = True,
  teachers: Teachers = "last",
  average: Average = "sum",
  divergence: Divergence = "cross_entropy",
  detached: bool = True,
  standardize: bool = False,
  where: ArrayLike | None = None,
) -> Terms:
  """Multi-exit distillation: match the predictions of each exit to those of its teacher exits.

  With M exits, T(m) the teachers of exit m, and l(t, m) the softened divergence of exit m from
  its teacher t, at temperature T and multiplied by T^2:
    average="sum": sum_m sum_{t in T(m)} l(t, m)
    average="mean": 1/M sum_m 1/|T(m)| sum_{t in T(m)} l(t, m), where exits without a teacher
      count in M and add 0.

  Args:
    exits: Outputs with logits (..., C), shallowest first. Fewer than two give 0.
    temperature: T > 0, a number or a traced scalar (`adapted_temperature`).
    squared_temperature: multiply by T^2.
    teachers: T(m). "last": the deepest exit, for all exits but itself. "later": every deeper exit.
      "ensemble": for every exit, the deepest included, one teacher whose probabilities are the
      mean of all exits' softmax(logits / T).
    average: "sum", or "mean" over teachers and exits.
    divergence: "cross_entropy", -sum_c p_t * log p_m; or "kl", which is 0 where exits agree. With
      detached teachers their gradients are equal.
    detached: teachers take no gradient.
    standardize: the logits of every exit first get mean 0 and standard deviation 1 over the
      classes, see `soft_target_kl`; those of an ensemble, before the mean of its probabilities.
    where: mask (B,) or with all leading axes of the logits, nonzero where a position counts; the
      rest is padding and may hold any values. None: all count.

  Returns:
    Terms(logit=...), float32 or wider. Exits that agree have gradient 0. The authors weight this
    by C = 1/2, the sum of all exits' cross-entropies by 1 - C, and their total by 10 / M.

  Raises:
    ConfigError: for arrays in place of Outputs, missing logits or shapes that differ, naming the
      exit, or for an invalid option.

  Source: Phuong & Lampert, "Distillation-Based Training for Multi-Exit Architectures", ICCV 2019.
  The defaults are the authors' code, which has the deepest exit as the only teacher. Other T(m)
  and the averages are the paper's general form, as far as it could be sourced; no published code
  has them.

  >>> z = Output(logits=jnp.array([[1.0, 0.0]]))
  >>> float(multi_exit([z, z, z], divergence="kl").total)
  0.0
  """
  check_positive("temperature", temperature)
  for name, value, known in (
    ("teachers", teachers, _TEACHERS),
    ("average", average, _AVERAGES),
    ("divergence", divergence, _DIVERGENCES),
  ):
    if value not in known:
      raise unknown_name(name, value, known)
  check_outputs("multi_exit", exits, role="exits")
  if len(exits) < 2:
    return Terms()
  logits = widen(*(logits_of(e, what="multi_exit", role=f"exit {i}") for i, e in enumerate(exits)))
  for i, z in enumerate(logits):
    check_same_shape(f"multi_exit: exit {i}", z, logits[-1], other="the deepest exit")
  counted = counted_positions("multi_exit", where, logits[-1])
  kept = _kept(counted, standardize, *logits)
  log_ps = [log_probabilities(z, temperature) for z in kept]
  targets = [lax.stop_gradient(log_p) for log_p in log_ps] if detached else log_ps
  total = jnp.zeros((), log_ps[0].dtype)
  for log_p, its_teachers in zip(log_ps, _teachers_of(targets, teachers), strict=True):
    if its_teachers:
      divergences = sum(_mean_divergence(log_p, t, divergence, counted) for t in its_teachers)
      total = total + (divergences / len(its_teachers) if average == "mean" else divergences)
  scale = temperature * temperature if squared_temperature else 1.0
  return Terms(logit=scale * total / (len(log_ps) if average == "mean" else 1))


def mean_confidence(
  logits: ArrayLike,
  *,
  temperature: ArrayLike = 1.0,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Mean confidence of a network: mean_b max_c softmax(logits / T).

  Args:
    logits: (..., C), with any leading axes.
    temperature: T > 0, a number or a traced scalar.
    axis_name: the device axis of a mapped step; the mean is then over the global batch.
    where: mask (B,) or with all leading axes of the logits, nonzero where a position counts; the
      rest is padding and may hold any values. None: all count.

  Returns:
    A scalar between 1 / C and 1, float32 or wider; 0 if nothing counts.

  Raises:
    ConfigError: if the temperature is a number that is not positive, or `where` does not fit the
      logits.

  Source: Phuong & Lampert, ICCV 2019, the authors' code.

  >>> mean_confidence(jnp.zeros((3, 4)))
  Array(0.25, dtype=float32)
  """
  check_positive("temperature", temperature)
  (logits,) = widen(logits, what="mean_confidence")
  counted = counted_positions("mean_confidence", where, logits)
  (logits,) = keep(counted, logits)
  confidence = jnp.exp(jnp.max(log_probabilities(logits, temperature), axis=-1))
  if axis_name is None or counted is None:
    value = mean(confidence, counted)
    return value if axis_name is None else lax.pmean(value, axis_name)
  total, count = lax.psum((jnp.sum(keep(counted, confidence)[0]), jnp.sum(counted)), axis_name)
  return total / jnp.maximum(count, 1).astype(total.dtype)


def adapted_temperature(
  temperature: ArrayLike,
  teacher_logits: ArrayLike,
  *,
  confidence: float | jax.Array = 0.5,
  factor: float | jax.Array = 1.05,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Temperature of the next step: it grows while the teacher's confidence is too high.

  T * factor if mean_b max_c softmax(teacher_logits / T) > confidence, else T.

  Args:
    temperature: T > 0 of this step, a scalar. The authors start at 1.
    teacher_logits: (..., C) of the deepest exit, in training mode.
    confidence: mean confidence above which T grows, between 0 and 1.
    factor: factor by which T grows.
    axis_name: the device axis of a mapped step; the mean is then over the global batch.
    where: mask (B,) or with all leading axes of the logits, nonzero where a position counts; the
      rest is padding and may hold any values. None: all count.

  Returns:
    The next temperature, a scalar of the same dtype, at least float32. It takes no gradient, and
    does not change if nothing counts.

  Raises:
    ConfigError: if an option is a number out of its range, or `where` does not fit the logits.

  Source: Phuong & Lampert, ICCV 2019, the authors' DistillationBasedLoss, which adapts T after
  every training batch. It keeps T in Python, so that a resumed run starts at 1 again.

  >>> adapted_temperature(2.0, jnp.array([[9.0, 0.0]]))
  Array(2.1, dtype=float32)
  >>> adapted_temperature(2.0, jnp.zeros((1, 4)))
  Array(2., dtype=float32)
  """
  check_positive("temperature", temperature)
  check_fraction("confidence", confidence)
  check_positive("factor", factor)
  (temperature,) = widen(lax.stop_gradient(temperature))
  found = mean_confidence(
    lax.stop_gradient(teacher_logits), temperature=temperature, axis_name=axis_name, where=where
  )
  return jnp.where(found > confidence, temperature * factor, temperature)


def _kept(
  counted: jax.Array | None, standardize: bool, *logits: jax.Array
) -> tuple[jax.Array, ...]:
  """Return the logits that count, standardised or as they are, and zeros."""
  kept = keep(counted, *logits)
  return tuple(map(standardized, kept)) if standardize else kept


def _teachers_of(log_ps: list[jax.Array], teachers: Teachers) -> list[list[jax.Array]]:
  """Return the log-probabilities of every exit's teachers."""
  if teachers == "ensemble":
    return [[mean_log_probabilities(log_ps)]] * len(log_ps)
  if teachers == "later":
    return [log_ps[m + 1 :] for m in range(len(log_ps))]
  return [log_ps[-1:]] * (len(log_ps) - 1) + [[]]


def _mean_divergence(
  log_p_student: jax.Array,
  log_p_teacher: jax.Array,
  divergence: Divergence,
  counted: jax.Array | None,
) -> jax.Array:
  """Mean divergence over what counts."""
  # Cross-entropy as divergence plus entropy: its gradient is exactly 0 where both agree.
  values = relative_entropy(log_p_student, log_p_teacher)
  if divergence == "cross_entropy":
    values = values + entropy(log_p_teacher)
  return mean(values, counted)
