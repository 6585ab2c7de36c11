"""Structured distillation of dense outputs (SKD): every pixel, and pairs of regions."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._checks import (
  Stages,
  check_maps,
  check_positive,
  check_same_shape,
  is_number,
  logits_of,
  over_stages,
)
from jaxkd.losses._counting import counted_examples, counted_positions, keep, mean, share
from jaxkd.losses._numerics import entropy, l2_norm, log_probabilities, relative_entropy, widen
from jaxkd.losses._resize import adaptive_max_pool, match_sizes
from jaxkd.types import Output, Terms

Form = Literal["paper", "code"]
Pool = Literal["max", "average"]

_FORMS: tuple[str, ...] = get_args(Form)
_POOLS: tuple[str, ...] = get_args(Pool)
# Added to the norm of a region's feature.
_EPS = 1e-8


def pixel_divergence(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  form: Form = "paper",
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Divergence of the class distributions of every position.

  mean over positions of KL(p_t || p_s), with p = softmax(logits).

  Args:
    student: logits (B, ..., C), such as (B, H, W, C). A logit of -inf is an impossible class.
    teacher: logits of the same shape, constant.
    form: "paper"; or "code", -sum p_t log p_s / (H W), a cross-entropy, so not 0 at equality, that
      is summed over the batch: its gradient is B times that of "paper".
    axis_name: mapped axis over whose devices the sum of "code" goes: the mean over devices of the
      result is then the value of the global batch. It changes nothing in "paper" without a mask.
    where: mask (B,) or with all leading axes of the logits, nonzero where a position counts; the
      rest may hold any values. None: all count.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts.

  Raises:
    ConfigError: if the shapes differ, there is no batch axis, `where` does not fit, or the form is
      unknown.

  Source: Liu et al., "Structured Knowledge Distillation for Dense Prediction", TPAMI 2020, eq. 1;
  "code" is CriterionPixelWise of structure_knowledge_distillation, which counts pixels without a
  label, too, and has no temperature.

  >>> pixel_divergence(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])).round(4)
  Array(0.4621, dtype=float32)
  """
  if form not in _FORMS:
    raise unknown_name("form", form, _FORMS)
  student, teacher = widen(student, lax.stop_gradient(teacher), what="pixel_divergence")
  check_same_shape("logits", student, teacher, "both must score the same classes, (B, ..., C)")
  if student.ndim < 2:
    raise ConfigError(f"pixel_divergence: logits {student.shape} are not (B, ..., C)")
  counted = counted_positions("pixel_divergence", where, student)
  student, teacher = keep(counted, student, teacher)
  log_p_student, log_p_teacher = log_probabilities(student), log_probabilities(teacher)
  values = relative_entropy(log_p_student, log_p_teacher)
  if form == "paper":
    return mean(values, counted) * share(counted, axis_name)
  (values,) = keep(counted, values + entropy(log_p_teacher))
  total = jnp.sum(values) / math.prod(values.shape[1:])
  return total if axis_name is None else total * lax.psum(1, axis_name)


def pair_wise_mse(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  scale: float = 0.5,
  pool: Pool = "max",
  norm_detached: bool = False,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Mean squared difference of the cosine similarities of the regions of an image.

  mean_b sum_ij (<a_i, a_j> - <a'_i, a'_j>)^2 / N^2, where a_i = f_i / (|f_i| + 1e-8) is the feature
  of one of N regions, and a' is the teacher's.

  Args:
    student: (B, H, W, C).
    teacher: (B, H', W', C'), constant. Channels may differ.
    scale: rows and columns of a region as a share of the teacher's, rounded down: 0.5 has 2x2
      regions. If the regions of both maps differ in number, the larger map is first
      average-pooled to the other's size.
    pool: feature of a region, its "max" or its "average". Regions at the border may be smaller.
    norm_detached: the student's norms |f_i| take no gradient. A zero vector then has the gradient
      of a division by 1e-8; else it has none.
    where: mask (B,) of the examples that count; the others may hold any values. None: all count.
      With more axes, (B, H, W), an example counts if any position does.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts. Zero at equality, and invariant to
    the scale of features much larger than 1e-8.

  Raises:
    ConfigError: if either is not (B, H, W, C), the batch sizes differ, `where` does not fit, the
      scale is not above 0, or makes regions without rows or columns, or the pool is unknown.

  Source: Liu et al., "Structured Knowledge Distillation for Dense Prediction", TPAMI 2020, eq. 2,
  as CriterionPairWiseforWholeFeatAfterPool of structure_knowledge_distillation, except that its
  norms take no gradient, which is `norm_detached=True`: it is not the gradient of a cosine. The
  paper pools by the mean, the code by the maximum.

  >>> x = jnp.eye(4).reshape(1, 2, 2, 4)
  >>> pair_wise_mse(x, jnp.ones((1, 2, 2, 1))).round(4)
  Array(0.75, dtype=float32)
  """
  check_positive("scale", scale)
  if pool not in _POOLS:
    raise unknown_name("pool", pool, _POOLS)
  student, teacher = widen(student, lax.stop_gradient(teacher), what="pair_wise_mse")
  check_maps("pair_wise_mse", student, teacher)
  counted = counted_examples("pair_wise_mse", where, student)
  student, teacher = keep(counted, student, teacher)
  region = _region(teacher, scale)
  if _grid(student, region) != _grid(teacher, region):
    student, teacher = match_sizes(student, teacher)
    region = _region(teacher, scale)
  ours, theirs = (_pooled(x, region, pool) for x in (student, teacher))
  gap = _similarities(ours, norm_detached) - _similarities(theirs, norm_detached)
  return mean(jnp.square(gap), counted)


def structured(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("stage3",),
  stage_weights: Sequence[ArrayLike] | None = None,
  pixel_weight: float = 10.0,
  pair_weight: float = 1.0,
  form: Form = "paper",
  scale: float = 0.5,
  pool: Pool = "max",
  norm_detached: bool = False,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> Terms:
  """Structured distillation (SKD): class distributions of pixels, and similarities of regions.

  pixel_weight * pixel_divergence(logits) + pair_weight * (sum over stages of pair_wise_mse).

  Args:
    student: Output with logits (B, ..., C), and features (B, H, W, C) at `stages`.
    teacher: Output likewise, constant. Channels of features may differ.
    stages: names, or (student's, teacher's) pairs of names.
    stage_weights: one weight per stage; None weights all by 1.
    pixel_weight: weight of the pixels; at 0 no logits are needed.
    pair_weight: weight of the pairs; at 0 no features are needed.
    form: of the pixel term, see `pixel_divergence`.
    scale: of the pair term, see `pair_wise_mse`.
    pool: of the pair term, see `pair_wise_mse`.
    norm_detached: of the pair term, see `pair_wise_mse`.
    axis_name: see `pixel_divergence`; the pair term is then a mean over the devices' examples.
    where: mask of what counts; see both kernels.

  Returns:
    Terms(feature=pairs, logit=pixels), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, missing logits, an unknown stage or option, or
      shapes that do not fit; it names the stage and both shapes.

  Source: Liu et al., "Structured Knowledge Distillation for Dense Prediction", TPAMI 2020. Weights
  10 and 1 are those of the authors' code, whose script has 0.5 for pairs; it compares one feature
  before the classifier. Its third, adversarial term is not here.

  >>> x = Output(jnp.ones((2, 4, 4, 3)), {"stage3": jnp.ones((2, 4, 4, 8))})
  >>> float(structured(x, x).total)
  0.0
  """
  terms = Terms()
  if not (is_number(pixel_weight) and pixel_weight == 0):
    logits = (
      logits_of(output, what="structured", role=role)
      for output, role in ((student, "student"), (teacher, "teacher"))
    )
    pixels = pixel_divergence(*logits, form=form, axis_name=axis_name, where=where)
    terms = terms + Terms(logit=pixel_weight * pixels)
  if not (is_number(pair_weight) and pair_weight == 0):
    kernel = functools.partial(
      pair_wise_mse, scale=scale, pool=pool, norm_detached=norm_detached, where=where
    )

    def over_devices(s: jax.Array, t: jax.Array) -> jax.Array:
      counted = counted_examples("pair_wise_mse", where, jnp.asarray(s))
      return kernel(s, t) * share(counted, axis_name)

    pairs = over_stages(
      over_devices, student, teacher, stages, weights=stage_weights, what="structured"
    )
    terms = terms + Terms(feature=pair_weight * pairs)
  return terms


def _region(teacher: jax.Array, scale: float) -> tuple[int, int]:
  """Return the rows and columns of a region."""
  rows, columns = (int(size * scale) for size in teacher.shape[1:3])
  if rows < 1 or columns < 1:
    raise ConfigError(
      f"scale is {scale}: a region of a map {teacher.shape} would have {rows}x{columns} positions"
    )
  return rows, columns


def _grid(x: jax.Array, region: tuple[int, int]) -> tuple[int, int]:
  """Return the rows and columns of regions; the last may be smaller."""
  return -(-x.shape[1] // region[0]), -(-x.shape[2] // region[1])


def _pooled(x: jax.Array, region: tuple[int, int], pool: str) -> jax.Array:
  """Return the features of the regions, (B, N, C)."""
  rows, columns = _grid(x, region)
  missing = rows * region[0] - x.shape[1], columns * region[1] - x.shape[2]
  padding = ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0))
  if pool == "max":
    x = adaptive_max_pool(jnp.pad(x, padding, constant_values=-jnp.inf), rows, columns)
  else:
    blocks = (rows, region[0], columns, region[1])

    def summed(y: jax.Array) -> jax.Array:
      return jnp.pad(y, padding).reshape(y.shape[0], *blocks, y.shape[3]).sum((2, 4))

    x = summed(x) / summed(jnp.ones((1, *x.shape[1:3], 1), x.dtype))
  return x.reshape(x.shape[0], -1, x.shape[3])


def _similarities(x: jax.Array, norm_detached: bool) -> jax.Array:
  """Return the inner products (B, N, N) of the unit features of x (B, N, C)."""
  norm = l2_norm(x, 2, keepdims=True)
  if norm_detached:
    units = x / (lax.stop_gradient(norm) + _EPS)
  else:
    # Without the `where`, a zero vector would get the gradient of a division by 1e-8.
    units = jnp.where(norm > 0, x / (norm + _EPS), 0.0)
  return jnp.einsum("bic,bjc->bij", units, units, precision=lax.Precision.HIGHEST)
