"""Relations: what is matched is how the samples of a batch lie to one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._checks import Stages, check_positive, is_number, over_stages
from jaxkd.losses._counting import counted_examples, keep
from jaxkd.losses._numerics import ROUNDINGS, l2_norm, power_of_two, widen
from jaxkd.losses._rkd_angles import corners, squared_distances, sum_of_angle_hubers
from jaxkd.types import Output, Terms

Reduction = Literal["mean", "sum"]
AxisName = str | tuple[str, ...]

_REDUCTIONS: tuple[str, ...] = get_args(Reduction)
# Lower bound of a distance: samples closer than this are that far apart, and stay.
_CLOSEST = 1e-6


def pairwise_distance_huber(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  squared: bool = False,
  reduction: Reduction = "mean",
  axis_name: AxisName | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Huber loss between the distances of all pairs of samples.

  Mean over i, j of huber(d_ij / m - d'_ij / m'), where d_ij = |x_i - x_j|, m is the mean of d
  over i != j, the dashed are the teacher's, and huber(e) = e^2 / 2 if |e| < 1 else |e| - 1/2.

  Args:
    student: (B, ...), flattened to one vector per sample.
    teacher: (B, ...), constant. Its vectors may be of another length.
    squared: compare squared distances.
    reduction: "mean" over the B^2 pairs, i = j included, or their "sum".
    axis_name: mapped axis (or axes) over which the batch is first gathered; see `relational`.
    where: (B,), the samples that count; the others may hold anything. None counts all.

  Returns:
    The loss, a scalar, float32 or wider. It does not change if either side is moved, rotated or
    scaled. Samples that are equal up to rounding (16 machine epsilons of their norm) have the
    distance 1e-6, with gradient 0; one sample alone gives 0.

  Raises:
    ConfigError: if the batch sizes differ, an array has no second axis, `where` is not (B,), or
      reduction is unknown.

  Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, eq. 4 to 6, as the authors'
  RkdDistance, RepDistiller, mdistiller (which has `squared`), the Zoo and torchdistill (which has
  `reduction="sum"`).

  >>> x = jnp.array([[0.0, 0.0], [3.0, 4.0], [6.0, 0.0]])
  >>> pairwise_distance_huber(x, 2.0 * x + 1.0).round(6)
  Array(0., dtype=float32)
  """
  ours, theirs = _relations("pairwise_distance_huber", student, teacher, axis_name, where)
  return _distance_huber(ours, theirs, squared, reduction)


def angle_huber(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  reduction: Reduction = "mean",
  axis_name: AxisName | None = None,
  block_size: int | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Huber loss between the angles of all triples of samples.

  Mean over i, j, k of huber(cos_ijk - cos'_ijk), where cos_ijk = <x_j - x_i, x_k - x_i> /
  (|x_j - x_i| |x_k - x_i|), the dashed is the teacher's, and huber is that of
  `pairwise_distance_huber`. Memory is O(B^2), forwards and backwards; time is O(B^3).

  Args:
    student: (B, ...), flattened to one vector per sample.
    teacher: (B, ...), constant. Its vectors may be of another length.
    reduction: "mean" over the B^3 triples, equal indices included, or their "sum".
    axis_name: mapped axis (or axes) over which the batch is first gathered; see `relational`.
    block_size: samples i at a time, which changes time and memory alone; None chooses.
    where: (B,), the samples that count; the others may hold anything. None counts all.

  Returns:
    The loss, a scalar, float32 or wider. It does not change if either side is moved, rotated or
    scaled. Samples that are equal up to rounding (16 machine epsilons of their norm) have no
    direction between them: the cosine is 0, and so is its gradient.

  Raises:
    ConfigError: as `pairwise_distance_huber`.

  Source: Park et al., CVPR 2019, eq. 7 and 8, as the authors' RKdAngle and the others named at
  `pairwise_distance_huber`. Those hold all B^3 cosines at once. At equal samples of the student
  their gradient is finite but about 1e12 times too large.

  >>> x = jnp.array([[0.0, 0.0], [3.0, 4.0], [6.0, 0.0]])
  >>> angle_huber(x, 2.0 * x + 1.0).round(6)
  Array(0., dtype=float32)
  """
  ours, theirs = _relations("angle_huber", student, teacher, axis_name, where)
  return _angle_huber(ours, theirs, reduction, axis_name, block_size)


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
  """Relational knowledge distillation (RKD): the student's samples lie as the teacher's do.

  The sum over stages of distance_weight * `pairwise_distance_huber` + angle_weight *
  `angle_huber`. A term of weight 0 is not computed.

  Args:
    student: Output with features at `stages`, (B, D) or (B, H, W, C), flattened per sample.
    teacher: Output likewise, constant. Sizes and channels may differ.
    stages: names, or (student's, teacher's) pairs of names.
    stage_weights: one weight per stage; None weighs them all 1.
    distance_weight: of the distance term.
    angle_weight: of the angle term.
    squared: the distance term compares squared distances.
    reduction: "mean" or "sum", over pairs and over triples.
    normalize_student: first divide the student's vectors by their norms. Zero vectors stay.
    normalize_teacher: likewise the teacher's.
    axis_name: mapped axis (or axes) of `pmap`, `shard_map(check_vma=False)` or `vmap`. The
      relations are then those of the global batch: samples and distances are gathered, angles are
      shared out by their corner. Every device gets the loss of the global batch, and `lax.pmean`
      of the gradients is its gradient. None relates the samples of each device by themselves.
    block_size: corners of triangles at a time, which changes time and memory alone; None chooses.
    where: (B,), the samples that count; the others may hold anything. None counts all.

  Returns:
    Terms(feature=...), float32 or wider.

  Raises:
    ConfigError: naming the stage and both shapes, the stages there are, or the option's value.

  Source: Park et al., "Relational Knowledge Distillation", CVPR 2019. The defaults are the
  weights for classification, as in RepDistiller, mdistiller and the Zoo. The authors' metric
  learning: `distance_weight=1, angle_weight=2, normalize_teacher=True`; torchdistill has these
  weights without normalisation.

  >>> pooled = Output(features={"pooled": jnp.eye(4)})
  >>> float(relational(pooled, pooled).total)
  0.0
  """

  def kernel(s: jax.Array, t: jax.Array) -> jax.Array:
    ours, theirs = _relations(
      "relational", s, t, axis_name, where, normalize=(normalize_student, normalize_teacher)
    )
    total = jnp.zeros((), ours.between.dtype)
    if not _is_zero(distance_weight):
      total = total + distance_weight * _distance_huber(ours, theirs, squared, reduction)
    if not _is_zero(angle_weight):
      total = total + angle_weight * _angle_huber(ours, theirs, reduction, axis_name, block_size)
    return total

  total = over_stages(kernel, student, teacher, stages, weights=stage_weights, what="relational")
  return Terms(feature=total)


class _Relations(NamedTuple):
  """Squared distances, 0 where two samples are equal up to rounding or one does not count.

  Attributes:
    to_samples: of this device's samples to all, (A, B).
    between: of all samples to all, (B, B).
    counted: (B,) which samples count; None where all do.
    closest: the lower bound of a distance, in the units of these.
  """

  to_samples: jax.Array
  between: jax.Array
  counted: jax.Array | None
  closest: jax.Array


def _relations(
  what: str,
  student: ArrayLike,
  teacher: ArrayLike,
  axis_name: AxisName | None,
  where: ArrayLike | None,
  normalize: tuple[bool, bool] = (False, False),
) -> tuple[_Relations, _Relations]:
  """Both sides' distances, all that the two terms need; the teacher's take no gradient."""
  student, teacher = widen(student, lax.stop_gradient(teacher), what=what)
  for name, x in (("student", student), ("teacher", teacher)):
    if x.ndim < 2:
      raise ConfigError(f"{what}: {name} {x.shape} is not (B, ...), one vector or map per sample")
  if student.shape[0] != teacher.shape[0]:
    raise ConfigError(
      f"{what}: student {student.shape} and teacher {teacher.shape} differ in batch size"
    )
  own = counted_examples(what, where, student)
  student, teacher = keep(own, student, teacher)
  return (
    _relate(student, own, axis_name, normalize[0]),
    _relate(teacher, own, axis_name, normalize[1]),
  )


def _relate(
  x: jax.Array, own: jax.Array | None, axis_name: AxisName | None, unit: bool
) -> _Relations:
  """One side's distances; `own` are the samples of this device that count."""
  x = x.reshape(x.shape[0], -1)
  # Values near 1 have squares that float32 holds. Relations do not change with the scale.
  scale = _scale(x, axis_name)
  x = x / scale
  x = _unit_vectors(x) if unit else x
  closest = _CLOSEST if unit else jnp.minimum(_CLOSEST / scale, 1 / _CLOSEST)
  closest = jnp.asarray(closest, x.dtype)
  places = jnp.arange(len(x))
  everyone, counted = x, own
  if axis_name is not None:
    # The student's gradient must flow through what other devices gathered, so nothing is stopped.
    everyone = lax.all_gather(x, axis_name, tiled=True)
    counted = None if own is None else lax.all_gather(own, axis_name, tiled=True)
    places = places + lax.axis_index(axis_name) * len(x)
  squares = squared_distances(x, everyone)
  # A compiler may contract the multiplication that makes x into the difference x_i - x_j. What is
  # left of equal samples is then rounding: it is not a distance, and has no direction.
  norms, all_norms = (jnp.sum(jnp.square(lax.stop_gradient(z)), axis=1) for z in (x, everyone))
  rounding = (ROUNDINGS * jnp.finfo(x.dtype).eps) ** 2
  apart = squares > rounding * jnp.maximum(norms[:, None], all_norms[None])
  apart &= places[:, None] != jnp.arange(len(everyone))[None]
  # NaN is apart from everything: it must reach the loss.
  apart |= jnp.isnan(squares)
  if own is not None and counted is not None:
    apart &= own[:, None] & counted[None]
  to_samples = jnp.where(apart, squares, 0.0)
  if axis_name is None:
    return _Relations(to_samples, to_samples, counted, closest)
  between = lax.all_gather(to_samples, axis_name, tiled=True)
  return _Relations(to_samples, between, counted, closest)


def _distance_huber(
  student: _Relations, teacher: _Relations, squared: bool, reduction: Reduction
) -> jax.Array:
  size = student.between.shape[0]
  pairs = ~jnp.eye(size, dtype=bool)
  if student.counted is not None:
    pairs &= student.counted[:, None] & student.counted[None]
  count = _count(student)

  def relative(side: _Relations) -> jax.Array:
    closest = jnp.square(side.closest)
    squares = jnp.where(pairs, jnp.maximum(side.between, closest), 0.0)
    if squared:
      distances = squares
    else:
      distances = jnp.where(pairs, jnp.sqrt(jnp.where(pairs, squares, 1.0)), 0.0)
    total = jnp.sum(distances)
    # One sample alone has no pairs, and no mean.
    return distances / (jnp.where(total > 0, total, 1.0) / jnp.maximum(count * (count - 1), 1))

  gap = jnp.where(pairs, relative(student) - relative(teacher), 0.0)
  slope = jnp.clip(gap, -1.0, 1.0)
  return _reduce(jnp.sum(slope * (gap - 0.5 * slope)), count**2, reduction)


def _angle_huber(
  student: _Relations,
  teacher: _Relations,
  reduction: Reduction,
  axis_name: AxisName | None,
  block_size: int | None,
) -> jax.Array:
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


def _count(relations: _Relations) -> Any:
  """How many samples count: a number, or where that depends on values a scalar array."""
  if relations.counted is None:
    return relations.between.shape[0]
  return jnp.sum(relations.counted, dtype=relations.between.dtype)


def _reduce(total: jax.Array, count: Any, reduction: Reduction) -> jax.Array:
  if reduction not in _REDUCTIONS:
    raise unknown_name("reduction", reduction, _REDUCTIONS)
  if reduction == "sum":
    return total
  return total / (count if isinstance(count, int) else jnp.maximum(count, 1))


def _scale(x: jax.Array, axis_name: AxisName | None) -> jax.Array:
  """A power of two near the largest magnitude in x, on all devices."""
  largest = jnp.max(jnp.abs(lax.stop_gradient(x)), initial=0.0)
  return power_of_two(largest if axis_name is None else lax.pmax(largest, axis_name))


def _unit_vectors(x: jax.Array) -> jax.Array:
  """The rows divided by their norms; zero rows stay zero, with gradient 0."""
  norm = l2_norm(x, 1, keepdims=True)
  positive = norm > 0
  return x * jnp.where(positive, 1.0 / jnp.where(positive, norm, 1.0), 0.0)


def _is_zero(weight: ArrayLike) -> bool:
  return is_number(weight) and bool(weight == 0)
