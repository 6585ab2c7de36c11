"""Be your own teacher (BYOT): exits learn the logits and features of the deepest exit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._checks import check_outputs, check_same_shape, is_number, logits_of, stage_arrays
from jaxkd.losses._counting import (
  counted_examples,
  counted_positions,
  counted_tokens,
  keep,
  share,
)
from jaxkd.losses._numerics import beyond_rounding, l2_norm, widen
from jaxkd.losses.multi_exit import soft_cross_entropy
from jaxkd.types import Output, Terms

Feature = Literal["masked_squares", "distance"]

_HINT = "the exits' bottlenecks must bring their features to one shape"


def masked_sum_of_squares(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Sum of (s - t)^2 over every element where s > 0 or t > 0, the batch included.

  Args:
    student: features of any shape.
    teacher: features of the same shape, constant.
    axis_name: device axis of a mapped step. The sum is then multiplied by the number of devices,
      so that `lax.pmean` of the value, and of its gradient, is that of the global batch.
    where: mask (B,), nonzero where an example counts; the others may hold any values. None: all
      count. With more axes, (B, T), an example counts if any position does; of features (B, T, D),
      the tokens that do not count are left out.

  Returns:
    The loss, a scalar, float32 or wider. It grows with the batch.

  Raises:
    ConfigError: if the shapes differ, or `where` does not fit them.

  Source: luanyunteng's implementation of Zhang et al., "Be Your Own Teacher", ICCV 2019.

  >>> masked_sum_of_squares(jnp.array([[-1.0, -1.0]]), jnp.array([[2.0, -3.0]]))
  Array(9., dtype=float32)
  """
  student, teacher = _kept("masked_sum_of_squares", student, teacher, where)
  active = (student > 0) | (teacher > 0)
  total = jnp.sum(jnp.where(active, jnp.square(student - teacher), 0.0))
  return total if axis_name is None else total * lax.axis_size(axis_name)


def euclidean_distance(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Euclidean norm of s - t over every element, the batch included; not squared, no mean.

  Args:
    student: features of any shape.
    teacher: features of the same shape, constant.
    axis_name: device axis of a mapped step; the norm is then over the global batch, the same on
      every device, and `lax.pmean` of its gradient is that of the global batch.
    where: mask (B,), nonzero where an example counts; the others may hold any values. None: all
      count. With more axes, (B, T), an example counts if any position does; of features (B, T, D),
      the tokens that do not count are left out.

  Returns:
    The loss, a scalar, float32 or wider. A norm has a kink where both agree: its gradient is 0
    there and has norm 1 beside it. Sides that agree up to rounding, 16 machine epsilons of their
    norm, count as equal.

  Raises:
    ConfigError: if the shapes differ, or `where` does not fit them.

  Source: the later code of the authors of "Be Your Own Teacher" (self-distillation-final), as
  torch.dist of two batches.

  >>> euclidean_distance(jnp.array([[3.0], [0.0]]), jnp.array([[0.0], [4.0]]))
  Array(5., dtype=float32)
  """
  student, teacher = _kept("euclidean_distance", student, teacher, where)
  distance, norm = l2_norm((student - teacher).reshape(-1), 0), l2_norm(teacher.reshape(-1), 0)
  if axis_name is not None:
    distance, norm = (l2_norm(lax.all_gather(x, axis_name), 0) for x in (distance, norm))
  return beyond_rounding(distance, norm)


def be_your_own_teacher(
  exits: Sequence[Output],
  *,
  temperature: float | jax.Array = 3.0,
  squared_temperature: bool = True,
  soft_weight: ArrayLike = 0.1,
  feature_weight: ArrayLike = 1e-6,
  feature: Feature = "masked_squares",
  feature_stage: str = "hint",
  feature_exits: Sequence[int] | None = None,
  standardize: bool = False,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> Terms:
  """Be your own teacher: match the exits of a network to its deepest exit.

  logit: soft_weight * sum over exits before the deepest of `soft_cross_entropy(exit, deepest)`;
  feature: feature_weight * sum over exits of the distance of their hints from the deepest's.

  Args:
    exits: Outputs, shallowest first, with logits (..., C) and, where they are compared, features
      at `feature_stage`, all of one shape. The deepest is constant. Fewer than two give 0.
    temperature: T > 0, of the soft term.
    squared_temperature: multiply the soft term by T^2.
    soft_weight: alpha; the exits' cross-entropies, which the scheme adds, then have 1 - alpha.
    feature_weight: beta. With the number 0 no features are needed.
    feature: "masked_squares", `masked_sum_of_squares`; or "distance", `euclidean_distance`.
    feature_stage: name of the hint among the features.
    feature_exits: indices of the exits whose hints are compared, from 0. None follows the published
      code: all before the deepest for "masked_squares"; the same without the last of them, which
      then needs no hint, for "distance".
    standardize: standardise the logits in the soft term, see `soft_target_kl`.
    axis_name: device axis of a mapped step: both distances are over the global batch. With `where`,
      so is the mean of the soft term: `lax.pmean` of both terms is the global value.
    where: mask (B,) or with all leading axes of the logits, nonzero where a position counts. For
      features, an example counts if any of its positions does.

  Returns:
    Terms(feature=..., logit=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage or option, or shapes that do not
      fit; it names the exit and both shapes.

  Source: Zhang et al., "Be Your Own Teacher", ICCV 2019. The defaults are luanyunteng's
  implementation. The authors' later code (self-distillation-final): `squared_temperature=False,
  soft_weight=0.3, feature="distance", feature_weight=0.03`, where the deepest exit's
  cross-entropy has weight 1 and the others' 0.7.

  >>> z = Output(logits=jnp.zeros((1, 2)), features={"hint": jnp.ones((1, 3))})
  >>> terms = be_your_own_teacher([z, z])
  >>> float(terms.feature)
  0.0
  """
  kernels = {"masked_squares": masked_sum_of_squares, "distance": euclidean_distance}
  if feature not in kernels:
    raise unknown_name("feature", feature, kernels)
  check_outputs("be_your_own_teacher", exits, role="exits")
  if len(exits) < 2:
    return Terms()
  *students, deepest = exits
  count = len(students)
  target = logits_of(deepest, what="be_your_own_teacher", role="deepest exit")
  soft = jnp.float32(0)
  for i, output in enumerate(students):
    logits = logits_of(output, what="be_your_own_teacher", role=f"exit {i}")
    check_same_shape(f"be_your_own_teacher: exit {i}", logits, target, other="the deepest exit")
    soft = soft + soft_cross_entropy(
      logits,
      target,
      temperature=temperature,
      squared_temperature=squared_temperature,
      standardize=standardize,
      where=where,
    )
  if feature_exits is None:
    feature_exits = range(count if feature == "masked_squares" else count - 1)
  if wrong := [i for i in feature_exits if i not in range(count)]:
    raise ConfigError(
      f"feature_exits has {wrong[0]}: the exits before the deepest are 0 to {count - 1}"
    )
  logit = soft_weight * soft
  if where is not None:
    logit = logit * share(counted_positions("be_your_own_teacher", where, target), axis_name)
  if not feature_exits or (is_number(feature_weight) and feature_weight == 0):
    return Terms(logit=logit)
  hint = stage_arrays(deepest, feature_stage, role="deepest exit", what="be_your_own_teacher")
  distance = jnp.float32(0)
  for i in feature_exits:
    own = stage_arrays(students[i], feature_stage, role=f"exit {i}", what="be_your_own_teacher")
    try:
      distance = distance + kernels[feature](own, hint, axis_name=axis_name, where=where)
    except ConfigError as error:
      raise ConfigError(f"exit {i}, stage {feature_stage!r}: {error}") from error
  return Terms(feature=feature_weight * distance, logit=logit)


def _kept(
  what: str, student: ArrayLike, teacher: ArrayLike, where: ArrayLike | None
) -> tuple[jax.Array, ...]:
  """Return both sides with zeros where examples do not count; the teacher takes no gradient."""
  student, teacher = widen(student, lax.stop_gradient(teacher), what=what)
  check_same_shape(what, student, teacher, _HINT)
  student, teacher = keep(counted_examples(what, where, student), student, teacher)
  return keep(counted_tokens(what, where, student), student, teacher)
