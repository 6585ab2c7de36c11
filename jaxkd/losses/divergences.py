"""Generalised divergences of softened distributions, over all classes or the teacher's largest."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._checks import (
  check_arrays,
  check_fraction,
  check_positive,
  check_same_shape,
  is_number,
)
from jaxkd.losses._counting import counted_positions, keep, mean
from jaxkd.losses._divergences import Divergence, check_divergence, divergences
from jaxkd.losses._numerics import log_probabilities, widen
from jaxkd.losses._standardization import standardized

Missing = Literal["bucket", "renormalized", "impossible"]

MISSING: tuple[str, ...] = get_args(Missing)


def soft_target_divergence(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  divergence: Divergence = "forward",
  beta: ArrayLike | None = None,
  temperature: float | jax.Array = 1.0,
  squared_temperature: bool = True,
  standardize: bool = False,
  top_k: int = 0,
  missing: Missing = "bucket",
  cross_entropy: bool = False,
  drop_impossible: bool = False,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Divergence of the student's softened distribution q from the teacher's, p.

  T^2 * the mean over positions of D(p, q), with p, q = softmax(logits / T), b = `beta`, and D:
    forward: KL(p || q) = sum_c p (log p - log q), as `soft_target_kl`;
    reverse: KL(q || p);
    symmetric: (1 - b) KL(p || q) + b KL(q || p);
    jensen_shannon: b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q; at b = 0 it is
      defined as KL(p || q), at b = 1 as KL(q || p);
    skewed_forward: KL(p || b p + (1 - b) q);
    skewed_reverse: KL(q || (1 - b) p + b q);
    total_variation: sum_c |p - q| / 2.

  Args:
    student: logits (..., C), with any leading axes. A logit of -inf is an impossible class, on
      either side: 0 log 0 = 0.
    teacher: logits of the same shape, constant.
    divergence: D.
    beta: b in 0..1, below 1 for the skewed ones. None: 0.5, or 0.1 for the skewed ones.
    temperature: T > 0, a number or a traced scalar.
    squared_temperature: multiply by T^2.
    standardize: standardise both sides' logits first, see `soft_target_kl`.
    top_k: K > 0 compares the K classes that are largest for the teacher at each position; 0 all.
    missing: the other classes, with K: see `top_k_divergence`. The bucket has the exact
      probabilities of both sides, as all logits are given.
    cross_entropy: the forward terms without the teacher's entropy, -sum_c p log q: the same
      gradient, and a value that is not 0 where both agree.
    drop_impossible: a class with a logit of -inf on either side adds nothing, also where the other
      side gives it a probability.
    where: mask (B,) or with all leading axes of the logits, nonzero where a position counts; the
      rest is padding and may hold any values. None: all count.

  Returns:
    The loss, a scalar, float32 or wider: mean over what counts, 0 if nothing does. Without
    `cross_entropy` and `drop_impossible` it is never negative; value and gradient are exactly 0
    where the logits agree. It is inf where the divergence is: forward, for a class that is possible
    for the teacher alone; reverse, for the student alone. The others but `symmetric` are bounded.

  Raises:
    ConfigError: if the shapes differ, `where` does not fit them, or an option is out of its range.

  Source: Agarwal et al., "On-Policy Distillation of Language Models" (GKD), ICLR 2024, as trl's
  GKDTrainer: jensen_shannon, `squared_temperature=False`, T = 0.9; it divides by the tokens that
  have a label, but without labels by the batch size alone, and with `reduction="mean"` by the
  vocabulary, too. Ko et al., "DistiLLM", ICML 2024, the authors' code: T = 1; `forward_kl` and
  `skewed_forward_kl` are `cross_entropy=True`, all are `drop_impossible=True` (where gradients are
  NaN); its js_distance with lam is jensen_shannon with beta = 1 - lam (lam = 0.9), its symmetric
  has beta = 0.9. DistillKit's dense KL is forward.

  >>> soft_target_divergence(
  ...   jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]), divergence="jensen_shannon"
  ... ).round(4)
  Array(0.1109, dtype=float32)
  """
  what = "soft_target_divergence"
  _check_options(divergence, beta, cross_entropy, temperature, missing)
  student, teacher = widen(student, lax.stop_gradient(teacher), what=what)
  check_same_shape("logits", student, teacher, "both must score the same classes, (..., C)")
  if not 0 <= top_k <= student.shape[-1]:
    raise ConfigError(f"top_k is {top_k}: expected 0 to {student.shape[-1]}, the number of classes")
  counted = counted_positions(what, where, student)
  student, teacher = keep(counted, student, teacher)
  if standardize:
    student, teacher = standardized(student), standardized(teacher)
  log_q, log_p = (log_probabilities(z, temperature) for z in (student, teacher))
  if top_k:
    _, classes = lax.top_k(log_p, top_k)
    log_q, log_p = (_events(x, classes, missing) for x in (log_q, log_p))
    if missing == "impossible":
      log_p = _impossible_rest(log_p[..., :-1])
  values = divergences(
    divergence,
    log_q,
    log_p,
    beta=beta,
    cross_entropy=cross_entropy,
    drop_impossible=drop_impossible,
  )
  return (temperature * temperature if squared_temperature else 1.0) * mean(values, counted)


def top_k_divergence(
  student: ArrayLike,
  classes: ArrayLike,
  values: ArrayLike,
  *,
  divergence: Divergence = "forward",
  beta: ArrayLike | None = None,
  temperature: float | jax.Array = 1.0,
  target_temperature: float = 1.0,
  squared_temperature: bool = True,
  missing: Missing = "bucket",
  floor: float = 1e-7,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Divergence from a teacher of which only the K largest log-probabilities are known.

  T^2 * the mean over positions of D(p, q), as `soft_target_divergence`, where p and q are
  distributions over K classes and, unless "renormalized", the other classes as one:
    bucket: p = (p_1, ..., p_K, 1 - sum_k p_k), q = (q_1, ..., q_K, the other classes' sum);
    renormalized: p and q, restricted to the K classes and divided by their sums;
    impossible: p = (p_1, ..., p_K) / sum_k p_k and 0, q as for the bucket. A student that equals
      the teacher has a loss above 0; the reverse divergence is inf.

  Args:
    student: logits (..., C).
    classes: the K classes (..., K), integers, distinct at each position.
    values: their log-probabilities (..., K) for the teacher, constant. Unless for the bucket,
      logits serve as well. -inf leaves a class to the others, as padding of a shorter row.
    divergence: D, see `soft_target_divergence`.
    beta: see there.
    temperature: T > 0 of the student.
    target_temperature: T > 0 at which the values are log-probabilities. Where it is not T, they
      are brought to T, the bucket as if it were one class: p_k^r / (sum_j p_j^r + p_rest^r),
      r = target_temperature / T.
    squared_temperature: multiply by T^2.
    missing: what the other classes are.
    floor: least probability of the bucket, on either side, so that its logarithm is finite.
    where: mask (B,) or with all leading axes of the logits; see `soft_target_divergence`.

  Returns:
    The loss, a scalar, float32 or wider: mean over what counts, 0 if nothing does.

  Raises:
    ConfigError: if the shapes do not fit together, the classes are not integers, or an option is
      out of its range.

  Source: trl's server distillation, forward: bucket with `floor=1e-7`, or renormalized, at
  `target_temperature=temperature, squared_temperature=False`. DistillKit's sparse KL and JSD:
  "symmetric_uniform" is bucket with `floor=1e-8`, "zero" is impossible. Both compute the student's
  bucket as 1 - sum_k q_k; here it is the sum of its classes, exact where it is small.

  >>> z = jnp.log(jnp.array([[0.5, 0.2, 0.2, 0.1]]))
  >>> classes = jnp.array([[0, 1]])
  >>> top_k_divergence(z, classes, z[:, :2]).round(4)
  Array(0., dtype=float32)
  >>> top_k_divergence(z, classes, z[:, :2], missing="impossible").round(4)
  Array(0.3567, dtype=float32)
  """
  what = "top_k_divergence"
  _check_options(divergence, beta, False, temperature, missing)
  check_positive("target_temperature", target_temperature)
  check_fraction("floor", floor)
  check_arrays(what, student, classes, values)
  student, values = widen(student, lax.stop_gradient(values), what=what)
  classes = _checked_classes(what, classes, values, student)
  counted = counted_positions(what, where, student)
  student, values = keep(counted, student, values)
  (classes,) = keep(counted, classes)
  log_q = log_probabilities(student, temperature)
  # A class without a value belongs to the others.
  absent = values == -jnp.inf
  values = _at_temperature(values, target_temperature / temperature, missing)
  if missing == "bucket":
    known = jnp.sum(jnp.exp(values), axis=-1)
    rest = jnp.log(jnp.maximum(1.0 - known, floor))
    log_p = jnp.concatenate([values, rest[..., None]], axis=-1)
    excess = jnp.maximum(floor - (1.0 - known), 0.0)
  else:
    log_p, excess = log_probabilities(values), jnp.zeros(values.shape[:-1], values.dtype)
    if missing == "impossible":
      log_p = _impossible_rest(log_p)
  log_q = _events(log_q, classes, missing, absent)
  if missing == "bucket":
    rest = log_q[..., -1]
    least = jnp.log(jnp.asarray(floor, rest.dtype))
    low = rest < least
    excess = excess - jnp.where(low, floor - jnp.exp(rest), 0.0)
    log_q = log_q.at[..., -1].set(jnp.where(low, least, rest))
  found = divergences(divergence, log_q, log_p, beta=beta, excess=excess)
  return (temperature * temperature if squared_temperature else 1.0) * mean(found, counted)


def _check_options(
  divergence: str,
  beta: ArrayLike | None,
  cross_entropy: bool,
  temperature: float | jax.Array,
  missing: str,
) -> None:
  check_divergence(divergence, beta, cross_entropy)
  check_positive("temperature", temperature)
  if missing not in MISSING:
    raise unknown_name("missing", missing, MISSING)


def _checked_classes(
  what: str, classes: ArrayLike, values: jax.Array, student: jax.Array
) -> jax.Array:
  """Return the classes, in which negative numbers are out of range as well."""
  found = jnp.asarray(classes)
  if not jnp.issubdtype(found.dtype, jnp.integer):
    raise ConfigError(f"{what}: classes are {found.dtype}: expected integers")
  if found.shape != values.shape or found.shape[:-1] != student.shape[:-1] or not found.ndim:
    raise ConfigError(
      f"{what}: classes {found.shape} and values {values.shape} do not belong to logits "
      f"{student.shape}: expected {(*student.shape[:-1], 'K')} of both"
    )
  return jnp.where(found < 0, student.shape[-1], found)


def _at_temperature(values: jax.Array, ratio: ArrayLike, missing: str) -> jax.Array:
  """Return log-probabilities at another temperature; logits, unless there is a bucket."""
  if is_number(ratio) and ratio == 1:
    return values
  absent = values == -jnp.inf
  powers = jnp.where(absent, -jnp.inf, ratio * jnp.where(absent, 0.0, values))
  if missing != "bucket":
    return powers
  rest = 1.0 - jnp.sum(jnp.exp(values), axis=-1, keepdims=True)
  power = jnp.exp(ratio * jnp.log(jnp.where(rest > 0, rest, 1.0)))
  return powers - jnp.log(
    jnp.sum(jnp.exp(powers), axis=-1, keepdims=True) + jnp.where(rest > 0, power, 0.0)
  )


def _events(
  log_p: jax.Array, classes: jax.Array, missing: str, absent: jax.Array | None = None
) -> jax.Array:
  """Return the logarithms (..., K) of some classes, or (..., K + 1) with the sum of the others."""
  found = jnp.take_along_axis(log_p, classes, axis=-1)
  if absent is not None:
    found = jnp.where(absent, -jnp.inf, found)
  if missing == "renormalized":
    # Where all of them are impossible, there is nothing to divide.
    none = jnp.max(found, axis=-1, keepdims=True) == -jnp.inf
    return jnp.where(none, found, log_probabilities(jnp.where(none, 0.0, found)))
  rows, chosen = log_p.reshape(-1, log_p.shape[-1]), classes.reshape(-1, classes.shape[-1])
  present = jnp.ones(chosen.shape, bool) if absent is None else ~absent.reshape(chosen.shape)
  taken = jnp.zeros(rows.shape, bool).at[jnp.arange(len(rows))[:, None], chosen].max(present)
  rest = jnp.where(taken, -jnp.inf, rows)
  none = jnp.max(rest, axis=-1, keepdims=True) == -jnp.inf
  total = jax.nn.logsumexp(jnp.where(none, 0.0, rest), axis=-1, keepdims=True)
  total = jnp.where(none, -jnp.inf, total).reshape(*log_p.shape[:-1], 1)
  return jnp.concatenate([found, total], axis=-1)


def _impossible_rest(log_p: jax.Array) -> jax.Array:
  """Return (..., K + 1): the logarithms of K classes, whose sum becomes 1, and of an impossible."""
  kept = log_probabilities(log_p)
  return jnp.concatenate([kept, jnp.full_like(kept[..., :1], -jnp.inf)], axis=-1)
