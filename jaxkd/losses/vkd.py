"""VkD: features through an orthogonal projection against normalised features of the teacher."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._checks import Stages, check_same_shape, over_stages
from jaxkd.losses._counting import counted_examples, keep, mean, share
from jaxkd.losses._numerics import beyond_rounding, widen
from jaxkd.types import Output, Terms

Standardize = Literal["teacher", "both"]

_STANDARDIZE: tuple[str, ...] = get_args(Standardize)
# Added to the variance of a layer normalisation.
_EPS = 1e-5


def normalized_huber(
  student: ArrayLike, teacher: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
  """Smooth L1 distance of features to the teacher's pooled and layer-normalised features.

  mean_{b,d} h(s - LN(mean over positions of t)), h(x) = x^2 / 2 for |x| < 1, else |x| - 1/2.

  Args:
    student: (B, D), or (B, ..., D), whose mean over positions is taken; projected to the teacher's
      width. It is not normalised, so that the loss is not 0 at equality.
    teacher: (B, D) or (B, ..., D), constant. LN subtracts the mean over D and divides by
      sqrt(variance + 1e-5), without learned parameters.
    where: mask (B,) of the examples that count; the others may hold any values. None: all count.
      With more axes, an example counts if any position does.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts. The scale of the teacher's features
    does not matter, if it is large.

  Raises:
    ConfigError: if a side has no axes (B, ..., D), their B or D differ, or `where` does not fit.

  Source: Miles et al., "VkD: Improving Knowledge Distillation using Orthogonal Projections", CVPR
  2024, as train_one_epoch of vkd.

  >>> normalized_huber(jnp.zeros((1, 2)), jnp.array([[-1.0, 1.0]])).round(4)
  Array(0.5, dtype=float32)
  """
  student, teacher = widen(student, lax.stop_gradient(teacher), what="normalized_huber")
  _check_features("normalized_huber", student, teacher)
  counted = counted_examples("normalized_huber", where, student)
  student, teacher = (
    jnp.mean(x, axis=tuple(range(1, x.ndim - 1))) for x in keep(counted, student, teacher)
  )
  check_same_shape("normalized_huber", student, teacher, "a projection brings one to the other")
  centred = teacher - jnp.mean(teacher, axis=1, keepdims=True)
  variance = jnp.mean(jnp.square(centred), axis=1, keepdims=True)
  return mean(_huber(student - centred / jnp.sqrt(variance + _EPS)), counted)


def standardized_huber(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Smooth L1 distance of features that are standardised over the batch on both sides.

  mean h((s - mean(s)) / std(s) - (t - mean(t)) / std(t)) over all rows and channels; mean and std
  (unbiased) of each channel are over all positions of all examples, h as in `normalized_huber`.

  Args:
    student: (B, ..., D), projected to the teacher's width.
    teacher: of the same shape, constant.
    axis_name: mapped axis over whose devices mean and std go; the value is then that of the global
      batch on every device. None: each device by itself.
    where: mask (B,) of the examples that count; the others may hold any values. None: all count.
      With more axes, an example counts if any position does.

  Returns:
    The loss, a scalar, float32 or wider; 0 at equality, and if nothing counts. A constant channel
    is 0, without gradient. Scale and offset of a channel do not matter.

  Raises:
    ConfigError: if the shapes differ or are not (B, ..., D), or `where` does not fit.

  Source: Miles et al., "VkD", CVPR 2024, as the SetCriterion of its ViDT, which compares the
  tokens of patches, of the body and of the neck; there a constant channel gives NaN.

  >>> x = jnp.array([[1.0], [2.0], [3.0]])
  >>> standardized_huber(x, 2 * x + 1)
  Array(0., dtype=float32)
  """
  student, teacher = widen(student, lax.stop_gradient(teacher), what="standardized_huber")
  _check_features("standardized_huber", student, teacher)
  check_same_shape("standardized_huber", student, teacher, "a projection brings one to the other")
  counted = counted_examples("standardized_huber", where, student)
  student, teacher = keep(counted, student, teacher)
  each = jnp.ones(len(student), student.dtype) if counted is None else counted.astype(student.dtype)
  factor = each.reshape(-1, *(1,) * (student.ndim - 1))
  rows = factor * jnp.ones((*student.shape[:-1], 1), student.dtype)

  def over_all(x: jax.Array) -> jax.Array:
    total = jnp.sum(x, axis=tuple(range(x.ndim - 1)), keepdims=True)
    return total if axis_name is None else lax.psum(total, axis_name)

  count = over_all(rows)
  ours, theirs = (_standardized(x, factor, count, over_all) for x in (student, teacher))
  return jnp.sum(over_all(_huber(ours - theirs) * factor)) / (
    student.shape[-1] * jnp.maximum(jnp.max(count), 1)
  )


def orthogonal_projection(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("stage3",),
  stage_weights: Sequence[ArrayLike] | None = None,
  standardize: Standardize = "teacher",
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> Terms:
  """VkD: the sum over stages of `normalized_huber`, or of `standardized_huber`.

  Args:
    student: Output with features (B, ..., D) at `stages`, from
      `jaxkd.adapters.OrthogonalProjector`.
    teacher: Output with features (B, ..., D), constant.
    stages: names, or (student's, teacher's) pairs of names.
    stage_weights: one weight per stage; None weights all by 1.
    standardize: "teacher", over channels of pooled features; "both", over the batch, of every
      position.
    axis_name: mapped axis; see `standardized_huber`. It changes nothing in "teacher" without a
      mask.
    where: mask (B,) of the examples that count; see `normalized_huber`.

  Returns:
    Terms(feature=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage or option, or shapes that do not
      fit; it names the stage and both shapes.

  Source: Miles et al., "VkD: Improving Knowledge Distillation using Orthogonal Projections", CVPR
  2024. Its objective for DeiT adds the cross-entropy of the class token and KL of the distillation
  token at T = 1, all with weight 1; for ViDT "both" has weight 4.

  >>> x = Output(features={"stage3": jnp.eye(4)})
  >>> float(orthogonal_projection(x, x, standardize="both").total)
  0.0
  """
  if standardize not in _STANDARDIZE:
    raise unknown_name("standardize", standardize, _STANDARDIZE)

  def kernel(s: jax.Array, t: jax.Array) -> jax.Array:
    counted = counted_examples("normalized_huber", where, jnp.asarray(s))
    return normalized_huber(s, t, where=where) * share(counted, axis_name)

  if standardize == "both":
    kernel = functools.partial(standardized_huber, axis_name=axis_name, where=where)
  value = over_stages(
    kernel, student, teacher, stages, weights=stage_weights, what="orthogonal_projection"
  )
  return Terms(feature=value)


def _check_features(what: str, student: jax.Array, teacher: jax.Array) -> None:
  for name, x in (("student", student), ("teacher", teacher)):
    if x.ndim < 2:
      raise ConfigError(f"{what}: {name} {x.shape} is not (B, ..., D)")


def _standardized(x: jax.Array, factor: jax.Array, count: jax.Array, over_all: object) -> jax.Array:
  """Return x with mean 0 and unbiased deviation 1 per channel; 0 for a constant channel."""
  assert callable(over_all)
  centre = over_all(x) / jnp.maximum(count, 1)
  centred = (x - centre) * factor
  squares = over_all(jnp.square(centred)) / jnp.maximum(count - 1, 1)
  positive = squares > 0
  deviation = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)
  # A constant channel may have a deviation of rounding.
  deviation = beyond_rounding(deviation, jnp.abs(centre))
  return jnp.where(deviation > 0, centred / jnp.where(deviation > 0, deviation, 1.0), 0.0)


def _huber(x: jax.Array) -> jax.Array:
  size = jnp.abs(x)
  return jnp.where(size < 1, 0.5 * jnp.square(x), size - 0.5)
