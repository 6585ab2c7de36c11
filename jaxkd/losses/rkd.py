"""Relational knowledge distillation (RKD): distances and angles between the samples of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import unknown_name
from jaxkd.losses._checks import Stages, check_positive, is_number, over_stages
from jaxkd.losses._rkd_angles import corners, sum_of_angle_hubers
from jaxkd.losses._rkd_distances import AxisName, Relations, relations
from jaxkd.types import Output, Terms

Reduction = Literal["mean", "sum"]

_REDUCTIONS: tuple[str, ...] = get_args(Reduction)


def pairwise_distance_huber(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  squared: bool = False,
  reduction: Reduction = "mean",
  axis_name: AxisName | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Huber loss between the relative distances of all pairs of samples.

  Mean over i, j of huber(d_ij / m - d'_ij / m'), where d_ij = |x_i - x_j|, m is the mean of d
  over i != j, d' and m' are the teacher's, and huber(e) = e^2 / 2 if |e| < 1 else |e| - 1/2.

  Args:
    student: (B, ...), flattened to one vector per sample.
    teacher: (B, ...), constant. Its vectors may have another length.
    squared: compare squared distances.
    reduction: "mean" over the B^2 pairs, i = j included, or their "sum".
    axis_name: mapped axis (or axes) over which the batch is first gathered; see `relational`.
    where: mask (B,) of the samples that count; others may hold any values. None: all count. With
      more axes, (B, T), a sample counts if any position does; of features (B, T, D), the tokens
      that do not count are left out.

  Returns:
    The loss, a scalar, float32 or wider, invariant to translation, rotation and scale of either
    side. Samples equal up to rounding (16 machine epsilons of their norm) have distance 1e-6, with
    gradient 0; a single sample gives 0.

  Raises:
    ConfigError: if the batch sizes differ, an array has no second axis, `where` does not fit, or
      reduction is unknown.

  Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, eq. 4 to 6, as the authors'
  RkdDistance, RepDistiller, mdistiller (which has `squared`), the Zoo and torchdistill (which has
  `reduction="sum"`).

  >>> x = jnp.array([[0.0, 0.0], [3.0, 4.0], [6.0, 0.0]])
  >>> pairwise_distance_huber(x, 2.0 * x + 1.0).round(6)
  Array(0., dtype=float32)
  """
  s, t = relations("pairwise_distance_huber", student, teacher, axis_name, where)
  return _distance_huber(s, t, squared, reduction)


def angle_huber(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  reduction: Reduction = "mean",
  axis_name: AxisName | None = None,
  block_size: int | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Huber loss between the cosines of the angles of all triples of samples.

  Mean over i, j, k of huber(cos_ijk - cos'_ijk), where cos_ijk = <x_j - x_i, x_k - x_i> /
  (|x_j - x_i| |x_k - x_i|), cos' is the teacher's, and huber is that of
  `pairwise_distance_huber`. Memory is O(B^2), forwards and backwards; time is O(B^3).

  Args:
    student: (B, ...), flattened to one vector per sample.
    teacher: (B, ...), constant. Its vectors may have another length.
    reduction: "mean" over the B^3 triples, equal indices included, or their "sum".
    axis_name: mapped axis (or axes) over which the batch is first gathered; see `relational`.
    block_size: samples i at a time; it affects time and memory alone. None chooses.
    where: mask (B,) of the samples that count; others may hold any values. None: all count. With
      more axes, (B, T), a sample counts if any position does; of features (B, T, D), the tokens
      that do not count are left out.

  Returns:
    The loss, a scalar, float32 or wider, invariant to translation, rotation and scale of either
    side. Samples equal up to rounding (16 machine epsilons of their norm) have no direction between
    them: the cosine is 0, with gradient 0.

  Raises:
    ConfigError: as `pairwise_distance_huber`.

  Source: Park et al., CVPR 2019, eq. 7 and 8, as the authors' RKdAngle and the others listed at
  `pairwise_distance_huber`. Those hold all B^3 cosines at once; at equal samples of the student
  their gradient is finite but about 1e12 times too large.

  >>> x = jnp.array([[0.0, 0.0], [3.0, 4.0], [6.0, 0.0]])
  >>> angle_huber(x, 2.0 * x + 1.0).round(6)
  Array(0., dtype=float32)
  """
  s, t = relations("angle_huber", student, teacher, axis_name, where)
  return _angle_huber(s, t, reduction, axis_name, block_size)


def relational(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("pooled",),
  stage_weights: Sequence[ArrayLike] | None = None,
  distance_weight: ArrayLike = 25.0,
  angle_weight: ArrayLike = 50.0,
  squared: bool = False,
  reduction: Reduction = "mean",
  normalize_student: bool = False,
  normalize_teacher: bool = False,
  axis_name: AxisName | None = None,
  block_size: int | None = None,
  where: ArrayLike | None = None,
) -> Terms:
  """Relational knowledge distillation (RKD): match distances and angles between samples.

  The sum over stages of distance_weight * `pairwise_distance_huber` + angle_weight *
  `angle_huber`. A term of weight 0 is not computed.

  Args:
    student: Output with features at `stages`, (B, D) or (B, H, W, C), flattened per sample.
    teacher: Output likewise, constant. Sizes and channels may differ.
    stages: names, or (student's, teacher's) pairs of names.
    stage_weights: one weight per stage; None weights all by 1.
    distance_weight: weight of the distance term.
    angle_weight: weight of the angle term.
    squared: the distance term compares squared distances.
    reduction: "mean" or "sum", over pairs and over triples.
    normalize_student: first divide the student's vectors by their norms. Zero vectors stay zero.
    normalize_teacher: likewise the teacher's.
    axis_name: mapped axis (or axes) of `pmap`, `shard_map(check_vma=False)` or `vmap`. Relations
      are then those of the global batch: samples and distances are gathered, and each device
      computes the angles at its own samples. Every device gets the loss of the global batch, and
      `lax.pmean` of the gradients is its gradient. None: relations within each device alone.
    block_size: corners of triangles at a time; it affects time and memory alone. None chooses.
    where: mask (B,) of the samples that count; others may hold any values. None: all count. With
      more axes, (B, T), a sample counts if any position does; of features (B, T, D), the tokens
      that do not count are left out.

  Returns:
    Terms(feature=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage or option, or shapes that do not
      fit; it names the stage and both shapes.

  Source: Park et al., "Relational Knowledge Distillation", CVPR 2019. The defaults are the
  weights for classification, as in RepDistiller, mdistiller and the Zoo. The authors' metric
  learning: `distance_weight=1, angle_weight=2, normalize_teacher=True`; torchdistill has these
  weights without normalisation.

  >>> pooled = Output(features={"pooled": jnp.eye(4)})
  >>> float(relational(pooled, pooled).total)
  0.0
  """

  def kernel(s: jax.Array, t: jax.Array) -> jax.Array:
    normalize = normalize_student, normalize_teacher
    pair = relations("relational", s, t, axis_name, where, normalize)
    total = jnp.zeros((), pair[0].between.dtype)
    if not _is_zero(distance_weight):
      total = total + distance_weight * _distance_huber(*pair, squared, reduction)
    if not _is_zero(angle_weight):
      total = total + angle_weight * _angle_huber(*pair, reduction, axis_name, block_size)
    return total

  total = over_stages(kernel, student, teacher, stages, weights=stage_weights, what="relational")
  return Terms(feature=total)


def _distance_huber(
  student: Relations, teacher: Relations, squared: bool, reduction: Reduction
) -> jax.Array:
  """Compute `pairwise_distance_huber` from squared distances."""
  size = student.between.shape[0]
  pairs = ~jnp.eye(size, dtype=bool)
  if student.counted is not None:
    pairs &= student.counted[:, None] & student.counted[None]
  count = _count(student)

  def relative(side: Relations) -> jax.Array:
    closest = jnp.square(side.closest)
    squares = jnp.where(pairs, jnp.maximum(side.between, closest), 0.0)
    if squared:
      distances = squares
    else:
      distances = jnp.where(pairs, jnp.sqrt(jnp.where(pairs, squares, 1.0)), 0.0)
    total = jnp.sum(distances)
    # A single sample has no pairs: divide by 1, not by a mean of 0.
    return distances / (jnp.where(total > 0, total, 1.0) / jnp.maximum(count * (count - 1), 1))

  gap = jnp.where(pairs, relative(student) - relative(teacher), 0.0)
  slope = jnp.clip(gap, -1.0, 1.0)
  return _reduce(jnp.sum(slope * (gap - 0.5 * slope)), count**2, reduction)


def _angle_huber(
  student: Relations,
  teacher: Relations,
  reduction: Reduction,
  axis_name: AxisName | None,
  block_size: int | None,
) -> jax.Array:
  """Compute `angle_huber` from squared distances."""
  if block_size is not None:
    check_positive("block_size", block_size)
  total = sum_of_angle_hubers(
    corners(student.to_samples, student.between),
    corners(teacher.to_samples, teacher.between),
    block_size,
  )
  if axis_name is not None:
    total = lax.psum(total, axis_name)
  return _reduce(total, _count(student) ** 3, reduction)


def _count(relations: Relations) -> Any:
  """Return the number of samples that count: an int, or a scalar array if there is a mask."""
  if relations.counted is None:
    return relations.between.shape[0]
  return jnp.sum(relations.counted, dtype=relations.between.dtype)


def _reduce(total: jax.Array, count: Any, reduction: Reduction) -> jax.Array:
  if reduction not in _REDUCTIONS:
    raise unknown_name("reduction", reduction, _REDUCTIONS)
  if reduction == "sum":
    return total
  return total / (count if isinstance(count, int) else jnp.maximum(count, 1))


def _is_zero(weight: ArrayLike) -> bool:
  return is_number(weight) and bool(weight == 0)
