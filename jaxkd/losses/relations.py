"""Relations: what is matched is how the samples of a batch lie to one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses.checks import check_positive, is_number
from jaxkd.losses.norms import l2_norm
from jaxkd.losses.precision import widen
from jaxkd.losses.stages import Stages, over_stages
from jaxkd.losses.triangles import corners, squared_distances, sum_of_angle_hubers
from jaxkd.types import Output, Terms

Reduction = Literal["mean", "sum"]
AxisName = str | tuple[str, ...]

_REDUCTIONS: tuple[str, ...] = get_args(Reduction)
# Lower bound of a squared distance: samples closer than 1e-6 are that far apart, and stay.
_CLOSEST = 1e-12


def pairwise_distance_huber(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  squared: bool = False,
  reduction: Reduction = "mean",
  axis_name: AxisName | None = None,
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

  Returns:
    The loss, a scalar, float32 or wider. It does not change if either side is moved, rotated or
    scaled. Equal samples have the distance 1e-6 and pull on nobody; one sample alone gives 0.

  Raises:
    ConfigError: if the batch sizes differ, an array has no second axis, or reduction is unknown.

  Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, eq. 4 to 6, as the authors'
  RkdDistance, RepDistiller, mdistiller (which has `squared`), the Zoo and torchdistill (which has
  `reduction="sum"`).

  >>> x = jnp.array([[0.0, 0.0], [3.0, 4.0], [6.0, 0.0]])
  >>> pairwise_distance_huber(x, 2.0 * x + 1.0).round(6)
  Array(0., dtype=float32)
  """
  ours, theirs = _relations("pairwise_distance_huber", student, teacher, axis_name)
  return _distance_huber(ours, theirs, squared, reduction)


def angle_huber(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  reduction: Reduction = "mean",
  axis_name: AxisName | None = None,
  block_size: int | None = None,
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

  Returns:
    The loss, a scalar, float32 or wider. It does not change if either side is moved, rotated or
    scaled. Equal samples have no direction between them: the cosine is 0, and so is its gradient.

  Raises:
    ConfigError: as `pairwise_distance_huber`.

  Source: Park et al., CVPR 2019, eq. 7 and 8, as the authors' RKdAngle and the others named at
  `pairwise_distance_huber`. Those hold all B^3 cosines at once. At equal samples of the student
  their gradient is finite but about 1e12 times too large.

  >>> x = jnp.array([[0.0, 0.0], [3.0, 4.0], [6.0, 0.0]])
  >>> angle_huber(x, 2.0 * x + 1.0).round(6)
  Array(0., dtype=float32)
  """
  ours, theirs = _relations("angle_huber", student, teacher, axis_name)
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
      "relational", s, t, axis_name, normalize=(normalize_student, normalize_teacher)
    )
    total = jnp.zeros((), ours.between.dtype)
    if not _is_zero(distance_weight):
      total = total + distance_weight * _distance_huber(ours, theirs, squared, reduction)
    if not _is_zero(angle_weight):
      total = total + angle_weight * _angle_huber(ours, theirs, reduction, axis_name, block_size)
    return total

  return Terms(feature=over_stages(kernel, student, teacher, stages, weights=stage_weights))


class _Relations(NamedTuple):
  """Squared distances of this device's samples to all (A, B), and of all to all (B, B)."""

  to_samples: jax.Array
  between: jax.Array


def _relations(
  what: str,
  student: ArrayLike,
  teacher: ArrayLike,
  axis_name: AxisName | None,
  normalize: tuple[bool, bool] = (False, False),
) -> tuple[_Relations, _Relations]:
  """Both sides' distances, all that the two terms need; the teacher's take no gradient."""
  student, teacher = widen(student, lax.stop_gradient(teacher))
  for name, x in (("student", student), ("teacher", teacher)):
    if x.ndim < 2:
      raise ConfigError(f"{what}: {name} {x.shape} is not (B, ...), one vector or map per sample")
  if student.shape[0] != teacher.shape[0]:
    raise ConfigError(
      f"{what}: student {student.shape} and teacher {teacher.shape} differ in batch size"
    )

  def relate(x: jax.Array, unit: bool) -> _Relations:
    x = x.reshape(x.shape[0], -1)
    x = _unit_vectors(x) if unit else x
    if axis_name is None:
      between = squared_distances(x, x)
      return _Relations(between, between)
    # The student's gradient must flow through what other devices gathered, so nothing is stopped.
    to_samples = squared_distances(x, lax.all_gather(x, axis_name, tiled=True))
    return _Relations(to_samples, lax.all_gather(to_samples, axis_name, tiled=True))

  return relate(student, normalize[0]), relate(teacher, normalize[1])


def _distance_huber(
  student: _Relations, teacher: _Relations, squared: bool, reduction: Reduction
) -> jax.Array:
  count = student.between.shape[0]
  others = ~jnp.eye(count, dtype=bool)

  def relative(squares: jax.Array) -> jax.Array:
    squares = jnp.where(others, jnp.maximum(squares, _CLOSEST), 0.0)
    if squared:
      distances = squares
    else:
      distances = jnp.where(others, jnp.sqrt(jnp.where(others, squares, 1.0)), 0.0)
    # One sample alone has no pairs, and no mean.
    return distances / (jnp.sum(distances) / (count * (count - 1))) if count > 1 else distances

  gap = relative(student.between) - relative(teacher.between)
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
  total = sum_of_angle_hubers(corners(*student), corners(*teacher), block_size)
  if axis_name is not None:
    total = lax.psum(total, axis_name)
  return _reduce(total, student.between.shape[0] ** 3, reduction)


def _reduce(total: jax.Array, count: int, reduction: Reduction) -> jax.Array:
  if reduction not in _REDUCTIONS:
    raise unknown_name("reduction", reduction, _REDUCTIONS)
  return total / count if reduction == "mean" else total


def _unit_vectors(x: jax.Array) -> jax.Array:
  """The rows divided by their norms; zero rows stay zero, with gradient 0."""
  norm = l2_norm(x, 1, keepdims=True)
  positive = norm > 0
  return x * jnp.where(positive, 1.0 / jnp.where(positive, norm, 1.0), 0.0)


def _is_zero(weight: ArrayLike) -> bool:
  return is_number(weight) and bool(weight == 0)
