"""MLKD, multi-level logit distillation: instances, classes and batches at several temperatures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._checks import check_fraction, check_positive, check_same_shape, logits_of
from jaxkd.losses._counting import counted_examples, keep, share
from jaxkd.losses._numerics import log_probabilities, widen
from jaxkd.losses.kd import soft_target_kl
from jaxkd.types import Output, Terms

Selection = Literal["none", "share"]

_SELECTIONS: tuple[str, ...] = get_args(Selection)


def class_correlation(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  temperature: float | jax.Array = 4.0,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Squared difference of the products of classes: |P_s' P_s - P_t' P_t|^2 / C.

  P (B, C) holds softmax(logits / T) of the batch; ' is the transpose. There is no factor T^2.

  Args:
    student: logits (B, C). A logit of -inf is an impossible class, of probability 0.
    teacher: logits (B, C), constant.
    temperature: T > 0.
    axis_name: mapped axis of `pmap`, `shard_map(check_vma=False)` or `vmap`: the products
      are then summed over the global batch. Every device gets its loss, and `lax.pmean` of the
      gradients is its gradient.
    where: mask (B,) of the examples that count; others may hold any values. None: all count.

  Returns:
    The loss, a scalar, float32 or wider: a sum over pairs of classes, which grows with B^2.

  Raises:
    ConfigError: if the shapes do not fit together.

  Source: Jin et al., "Multi-level Logit Distillation", CVPR 2023, as `cc_loss` of the authors'
  code.

  >>> z = jnp.array([[0.0, 0.0], [0.0, 0.0]])
  >>> class_correlation(z, jnp.array([[100.0, 0.0], [0.0, 100.0]]), temperature=1.0)
  Array(0.5, dtype=float32)
  """
  student, teacher, _ = _probabilities(
    "class_correlation", student, teacher, temperature=temperature, where=where
  )

  def products(p: jax.Array) -> jax.Array:
    found = jnp.matmul(p.T, p, precision=lax.Precision.HIGHEST)
    return found if axis_name is None else lax.psum(found, axis_name)

  return jnp.sum(jnp.square(products(student) - products(teacher))) / student.shape[1]


def batch_correlation(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  temperature: float | jax.Array = 4.0,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Squared difference of the products of examples: |P_s P_s' - P_t P_t'|^2 / B.

  Args:
    student: logits (B, C); see `class_correlation`, as for all that follow.
    teacher: logits (B, C), constant.
    temperature: T > 0.
    axis_name: mapped axis; the examples of all devices are then compared with each other.
    where: mask (B,) of the examples that count.

  Returns:
    The loss, a scalar, float32 or wider: a sum over pairs of examples over their number.

  Raises:
    ConfigError: if the shapes do not fit together.

  Source: Jin et al., CVPR 2023, as `bc_loss` of the authors' code.

  >>> z = jnp.array([[0.0, 0.0], [0.0, 0.0]])
  >>> batch_correlation(z, jnp.array([[100.0, 0.0], [0.0, 100.0]]), temperature=1.0)
  Array(0.5, dtype=float32)
  """
  student, teacher, counted = _probabilities(
    "batch_correlation", student, teacher, temperature=temperature, where=where
  )

  def products(p: jax.Array) -> jax.Array:
    # No stop_gradient: the student's gradient flows through the gathered examples, too.
    every = p if axis_name is None else lax.all_gather(p, axis_name, tiled=True)
    return jnp.matmul(p, every.T, precision=lax.Precision.HIGHEST)

  total = jnp.sum(jnp.square(products(student) - products(teacher)))
  count = jnp.asarray(len(student) if counted is None else jnp.sum(counted), total.dtype)
  if axis_name is not None:
    total, count = lax.psum(total, axis_name), lax.psum(count, axis_name)
  return total / jnp.maximum(count, 1)


def multi_level(
  student: Output,
  teacher: Output,
  strong_student: Output,
  strong_teacher: Output,
  *,
  temperatures: Sequence[float] = (4.0, 3.0, 5.0, 2.0, 6.0),
  strong_temperatures: Sequence[float] | None = None,
  repeated_temperatures: Sequence[float] = (),
  selection: Selection = "none",
  percentile: float = 50.0,
  standardize: bool = False,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> dict[str, Terms]:
  """Multi-level logit distillation (MLKD), of a weakly and a strongly augmented view.

  With T over the temperatures, z the weak view's logits and z' the strong one's:
    instances: m sum_T KD_T(z) + sum_T' KD_T'(z') + sum_T'' KD_T''(z), KD = `soft_target_kl`, T^2 KL
    classes: m' sum_T `class_correlation`_T(z)
    batch: m sum_T `batch_correlation`_T(z)

  Args:
    student: Output with logits (B, C) of the weak view.
    teacher: Output likewise, constant.
    strong_student: Output with logits (B, C) of the strong view.
    strong_teacher: Output likewise, constant.
    temperatures: of all three parts of the weak view.
    strong_temperatures: T' of the strong view; None takes `temperatures`.
    repeated_temperatures: T'', at which the weak view is compared once more.
    selection: "none": m = m' = 1. "share": m is the share of examples whose largest probability by
      the teacher (weak view, T = 1) is at most its percentile over the batch, m' the share of
      classes whose sum of the teacher's probabilities over the batch is at most theirs.
    percentile: of "share", in 0..100, with linear interpolation.
    standardize: whether "instances" compares logits of mean 0 and standard deviation 1 over the
      classes; the other parts do not.
    axis_name: mapped axis; see `class_correlation`. Without it each device has a batch of its own.
    where: mask (B,) of the examples that count; others may hold any values. None: all count.

  Returns:
    {"instances": ..., "classes": ..., "batch": ...}, Terms(logit=...), float32 or wider, 0 where
    both agree.

  Raises:
    ConfigError: for arrays in place of Outputs; if logits are missing or differ in shape, or the
      selection is unknown.

  Source: Jin et al., "Multi-level Logit Distillation", CVPR 2023. The authors' code
  (Jin-Ying/Multi-Level-Logit-Distillation) means to select the less confident half of examples and
  classes, but reduces every term before it multiplies by the mask, so that only the mask's mean is
  left, about 1/2: `selection="share"`. Its last two terms of the strong view take the weak view's
  logits: strong_temperatures=(4, 3, 5), repeated_temperatures=(2, 6). It computes classes and batch
  of the strong view, and drops them. `standardize` is Sun et al., CVPR 2024, with a first
  temperature of 2.

  >>> z = Output(logits=jnp.eye(3))
  >>> {name: float(terms.total) for name, terms in multi_level(z, z, z, z).items()}
  {'instances': 0.0, 'classes': 0.0, 'batch': 0.0}
  """
  what = "multi_level"
  if selection not in _SELECTIONS:
    raise unknown_name("selection", selection, _SELECTIONS)
  check_fraction("percentile / 100", percentile / 100)
  weak, strong = (
    tuple(logits_of(z, what=what, role=role) for z, role in zip(pair, roles, strict=True))
    for pair, roles in (
      ((student, teacher), ("student", "teacher")),
      ((strong_student, strong_teacher), ("student", "teacher")),
    )
  )
  examples: ArrayLike = 1.0
  classes: ArrayLike = 1.0
  if selection == "share":
    examples, classes = shares_of(weak[1], percentile, axis_name, where)

  def instances(pair: tuple[Any, ...], of: Sequence[float]) -> Any:
    options: dict[str, Any] = {"standardize": standardize, "where": where}
    return sum((soft_target_kl(*pair, temperature=t, **options) for t in of), start=0.0)

  again = strong_temperatures if strong_temperatures is not None else temperatures
  by_instance = (
    examples * instances(weak, temperatures)
    + instances(strong, again)
    + instances(weak, repeated_temperatures)
  )
  counted = counted_examples(what, where, jnp.asarray(weak[0]))
  # A device's mean is scaled such that the mean over devices is that of the global batch.
  by_instance = by_instance * share(counted, axis_name)
  mapped: dict[str, Any] = {"axis_name": axis_name, "where": where}
  by_class, by_batch = (
    sum((kernel(*weak, temperature=t, **mapped) for t in temperatures), start=0.0)
    for kernel in (class_correlation, batch_correlation)
  )
  return {
    "instances": Terms(logit=by_instance),
    "classes": Terms(logit=classes * by_class),
    "batch": Terms(logit=examples * by_batch),
  }


def shares_of(
  teacher: ArrayLike, percentile: float, axis_name: str | None, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array]:
  """Return the shares of examples and of classes that `selection="share"` multiplies by."""
  _, p, counted = _probabilities("multi_level", teacher, teacher, temperature=1.0, where=where)
  counted = jnp.ones(len(p), bool) if counted is None else counted
  largest, sums = jnp.max(p, axis=1), jnp.sum(p, axis=0)
  if axis_name is not None:
    largest, counted = (lax.all_gather(x, axis_name, tiled=True) for x in (largest, counted))
    sums = lax.psum(sums, axis_name)
  return (
    _share_up_to(largest, counted, percentile),
    _share_up_to(sums, jnp.ones_like(sums, bool), percentile),
  )


def _share_up_to(values: jax.Array, counted: jax.Array, percentile: float) -> jax.Array:
  """Return the share of the values (N,) that count that are at most their percentile."""
  count = jnp.sum(counted)
  ordered = jnp.sort(jnp.where(counted, values, jnp.inf))
  place = jnp.maximum(count - 1, 0) * jnp.asarray(percentile / 100, values.dtype)
  below, above = (ordered[f(place).astype(jnp.int32)] for f in (jnp.floor, jnp.ceil))
  part = place - jnp.floor(place)
  # As numpy's interpolation, from the nearer end. Where nothing counts both ends are infinite.
  gap = jnp.where(jnp.isfinite(above), above - below, 0.0)
  bound = jnp.where(part < 0.5, below + gap * part, above - gap * (1 - part))
  chosen = jnp.sum(counted & (values <= bound))
  return (chosen / jnp.maximum(count, 1)).astype(values.dtype)


def _probabilities(
  what: str,
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  temperature: float | jax.Array,
  where: ArrayLike | None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Return both sides' probabilities (B, C), 0 for examples that do not count, and the mask."""
  check_positive("temperature", temperature)
  student, teacher = widen(student, lax.stop_gradient(teacher), what=what)
  check_same_shape(what, student, teacher, "both must score the same classes, (B, C)")
  if student.ndim != 2:
    raise ConfigError(f"{what}: logits {student.shape} are not (B, C), one row per example")
  counted = counted_examples(what, where, student)
  student, teacher = keep(counted, student, teacher)
  p, q = keep(counted, *(jnp.exp(log_probabilities(z, temperature)) for z in (student, teacher)))
  return p, q, counted
