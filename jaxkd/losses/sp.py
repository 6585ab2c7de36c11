"""Similarity-preserving distillation (SP): which samples of a batch have similar features."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import unknown_name
from jaxkd.losses._checks import Stages, check_samples, over_stages
from jaxkd.losses._counting import counted_examples, counted_tokens, keep
from jaxkd.losses._numerics import l2_norm, power_of_two, widen
from jaxkd.losses._rkd_distances import AxisName
from jaxkd.types import Output, Terms

RowNorm = Literal["l2", "l1"]

_ROW_NORMS: tuple[str, ...] = get_args(RowNorm)

# Lower bound of a row's norm.
_EPS = 1e-12


def similarity_mse(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  row_norm: RowNorm = "l2",
  axis_name: AxisName | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Mean squared difference of the row-normalised Gram matrices over the samples.

  sum_ij (G_ij - G'_ij)^2 / B^2, where row i of G is g_i / max(|g_i|, 1e-12), g_ij = <x_i, x_j>, and
  G' is the teacher's.

  Args:
    student: (B, ...), flattened to one vector per sample.
    teacher: (B, ...), constant. Its vectors may have another length.
    row_norm: |g|, the "l2" or the "l1" norm of a row.
    axis_name: mapped axis (or axes) over which the batch is first gathered; see
      `similarity_preserving`.
    where: mask (B,) of the samples that count; others may hold any values. None: all count. With
      more axes, (B, T), a sample counts if any position does; of features (B, T, D), the tokens
      that do not count are left out.

  Returns:
    The loss, a scalar, float32 or wider, invariant to rotation and scale of either side. A zero
    vector has similarities 0, and its row takes no gradient.

  Raises:
    ConfigError: if the batch sizes differ, an array has no second axis, `where` does not fit, or
      row_norm is unknown.

  Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, eq. 1 to 4, as
  RepDistiller's Similarity, mdistiller, SimKD and the Zoo. torchdistill has `row_norm="l1"`. The
  row of a zero vector of the student has there a gradient about 1e12 times too large. Where values
  exceed 1, the bound of a norm is 1e-12 times the square of the largest here.

  >>> x = jnp.array([[3.0, 4.0], [-4.0, 3.0]])
  >>> similarity_mse(x, jnp.ones((2, 5))).round(4)
  Array(0.2929, dtype=float32)
  """
  if row_norm not in _ROW_NORMS:
    raise unknown_name("row_norm", row_norm, _ROW_NORMS)
  student, teacher = widen(student, lax.stop_gradient(teacher), what="similarity_mse")
  check_samples("similarity_mse", student, teacher)
  own = counted_examples("similarity_mse", where, student)
  student, teacher = keep(own, student, teacher)
  student, teacher = (
    keep(counted_tokens("similarity_mse", where, x), x)[0] for x in (student, teacher)
  )
  gap = _similarities(student, axis_name, row_norm) - _similarities(teacher, axis_name, row_norm)
  total = jnp.sum(jnp.square(gap))
  count = jnp.asarray(gap.shape[1] if own is None else jnp.sum(own), total.dtype)
  if axis_name is not None:
    total = lax.psum(total, axis_name)
    count = count if own is None else lax.psum(count, axis_name)
  return total / jnp.square(jnp.maximum(count, 1))


def similarity_preserving(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("stage3",),
  stage_weights: Sequence[ArrayLike] | None = None,
  row_norm: RowNorm = "l2",
  axis_name: AxisName | None = None,
  where: ArrayLike | None = None,
) -> Terms:
  """Similarity-preserving distillation (SP): the sum over stages of `similarity_mse`.

  Args:
    student: Output with features at `stages`, (B, D) or (B, H, W, C), flattened per sample.
    teacher: Output likewise, constant. Sizes and channels may differ.
    stages: names, or (student's, teacher's) pairs of names.
    stage_weights: one weight per stage; None weights all by 1.
    row_norm: norm of a row of similarities, "l2" or "l1".
    axis_name: mapped axis (or axes) of `pmap`, `shard_map(check_vma=False)` or `vmap`. The samples
      compared are then those of the global batch: each device computes the similarities of its own
      samples to all. Every device gets the loss of the global batch, and `lax.pmean` of the
      gradients is its gradient. None: similarities within each device alone.
    where: mask (B,) of the samples that count; others may hold any values. None: all count. With
      more axes, (B, T), a sample counts if any position does; of features (B, T, D), the tokens
      that do not count are left out.

  Returns:
    Terms(feature=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage or option, or shapes that do not
      fit; it names the stage and both shapes.

  Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019. RepDistiller
  compares the last stage before pooling. The options of each implementation are listed at
  `similarity_mse`.

  >>> maps = Output(features={"stage3": jnp.ones((4, 2, 2, 3))})
  >>> float(similarity_preserving(maps, maps).total)
  0.0
  """
  kernel = functools.partial(similarity_mse, row_norm=row_norm, axis_name=axis_name, where=where)
  total = over_stages(
    kernel, student, teacher, stages, weights=stage_weights, what="similarity_preserving"
  )
  return Terms(feature=total)


def _similarities(x: jax.Array, axis_name: AxisName | None, row_norm: RowNorm) -> jax.Array:
  """Return the normalised similarities (A, B) of this device's samples (A, ...) to all."""
  x = x.reshape(x.shape[0], -1)
  largest = jnp.max(jnp.abs(lax.stop_gradient(x)), initial=0.0)
  # Values near 1 have products whose squares float32 can hold. The scale cancels.
  scale = power_of_two(largest if axis_name is None else lax.pmax(largest, axis_name))
  x = x / scale
  # No stop_gradient: the student's gradient flows through the gathered samples, too.
  gathered = x if axis_name is None else lax.all_gather(x, axis_name, tiled=True)
  # HIGHEST: GPUs and TPUs would otherwise round the operands.
  gram = jnp.matmul(x, gathered.T, precision=lax.Precision.HIGHEST)
  if row_norm == "l2":
    norm = l2_norm(gram, 1, keepdims=True)
  else:
    norm = jnp.sum(jnp.abs(gram), axis=1, keepdims=True)
  eps = jnp.clip(jnp.square(_EPS**0.5 / scale), _EPS, jnp.finfo(x.dtype).max)
  # Without the `where`, a zero vector would get the gradient of a division by eps.
  return gram * jnp.where(norm > 0, 1.0 / jnp.maximum(norm, eps), 0.0)
