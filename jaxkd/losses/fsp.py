"""Flow of solution procedure (FSP): Gram matrices between the channels of two layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._checks import (
  Arrays,
  Stages,
  check_maps,
  check_same_shape,
  mask_and_arrays,
  stage_arrays,
  stage_label,
  stage_pairs,
)
from jaxkd.losses._counting import counted_examples, keep, mean, number
from jaxkd.losses._numerics import channel_products, l2_distance, widen
from jaxkd.losses._resize import adaptive_average_pool, adaptive_max_pool
from jaxkd.types import Output, Terms

Pool = Literal["average", "max"]

_POOLS: dict[str, Callable[[ArrayLike, int, int], jax.Array]] = {
  "average": adaptive_average_pool,
  "max": adaptive_max_pool,
}


def flow_matrix(
  first: ArrayLike,
  second: ArrayLike,
  *,
  pool: Pool = "average",
  where: ArrayLike | None = None,
) -> jax.Array:
  """FSP matrix of two layers: G[b, i, j] = mean over (h, w) of x[b, h, w, i] y[b, h, w, j].

  Args:
    first: x, feature maps (B, H, W, C) of a layer.
    second: y, feature maps (B, H', W', C') of a later layer. Where sizes differ, the larger map is
      pooled to the smaller, in each axis.
    pool: pooling of the larger map, "average" or "max".
    where: mask (B,), nonzero where an example counts; the others may hold any values. None: all
      count. With more axes, (B, T), an example counts if any position does.

  Returns:
    (B, C, C'), float32 or wider; zeros for examples that do not count. It does not depend on the
    order of positions, if that is the same in both layers.

  Raises:
    ConfigError: if either is not (B, H, W, C), the batch sizes differ, `where` does not fit
      them, or pool is unknown.

  Source: Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization
  and Transfer Learning", CVPR 2017. RepDistiller and the Zoo average; torchdistill takes
  `pool="max"`.

  >>> flow_matrix(jnp.ones((1, 4, 4, 2)), 3.0 * jnp.ones((1, 2, 2, 1))).shape
  (1, 2, 1)
  """
  first, second = widen(first, second, what="flow_matrix")
  for name, x in (("first", first), ("second", second)):
    if x.ndim != 4:
      raise ConfigError(f"flow_matrix: {name} {x.shape} is not a feature map (B, H, W, C)")
  if first.shape[0] != second.shape[0]:
    raise ConfigError(
      f"flow_matrix: first {first.shape} and second {second.shape} differ in batch size"
    )
  if pool not in _POOLS:
    raise unknown_name("pool", pool, _POOLS)
  first, second = keep(counted_examples("flow_matrix", where, first), first, second)
  rows, columns = (min(first.shape[axis], second.shape[axis]) for axis in (1, 2))
  first, second = (_POOLS[pool](x, rows, columns) for x in (first, second))
  products = channel_products(first, second)
  return products / (rows * columns)


def fsp_mse(student: ArrayLike, teacher: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
  """Mean squared difference of two flow matrices: mean over B, C, C' of (G_s - G_t)^2.

  Args:
    student: (B, C, C'), as `flow_matrix` gives it.
    teacher: (B, C, C'), constant.
    where: mask (B,), nonzero where an example counts; the others may hold any values. None: all
      count. With more axes, (B, T), an example counts if any position does.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts.

  Raises:
    ConfigError: if the shapes differ, or `where` does not fit them.

  Source: Yim et al., "A Gift from Knowledge Distillation", CVPR 2017, with the mean over the matrix
  of RepDistiller and the Zoo. The paper sums over the matrix: C C' times this.

  >>> fsp_mse(jnp.ones((2, 3, 4)), jnp.zeros((2, 3, 4)))
  Array(1., dtype=float32)
  """
  student, teacher = widen(student, lax.stop_gradient(teacher), what="fsp_mse")
  check_same_shape("fsp_mse", student, teacher)
  counted = counted_examples("fsp_mse", where, student)
  student, teacher = keep(counted, student, teacher)
  return mean(jnp.square(student - teacher), counted)


def fsp_column_norm(
  student: ArrayLike, teacher: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
  """Column-wise distance of two flow matrices: mean over B of sum_j |G_s[:, j] - G_t[:, j]|_2.

  The norm of a column is over the first layer's channels, and is not squared.

  Args:
    student: (B, C, C'), as `flow_matrix` gives it.
    teacher: (B, C, C'), constant.
    where: mask (B,), nonzero where an example counts; the others may hold any values. None: all
      count. With more axes, (B, T), an example counts if any position does.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts. A norm has a kink at 0: its gradient
    is 0 there and has norm 1 beside it. Columns that differ by at most 16 machine epsilons of the
    teacher's norm count as equal, so that equal networks have gradient 0.

  Raises:
    ConfigError: if the shapes are not (B, C, C') or differ, or `where` does not fit them.

  Source: torchdistill's FSPLoss. Yim et al., "A Gift from Knowledge Distillation", CVPR 2017,
  square the difference (`fsp_mse`).

  >>> fsp_column_norm(3.0 * jnp.ones((1, 4, 2)), jnp.zeros((1, 4, 2)))
  Array(12., dtype=float32)
  """
  student, teacher = widen(student, lax.stop_gradient(teacher), what="fsp_column_norm")
  if student.ndim != 3:
    raise ConfigError(f"fsp_column_norm: student {student.shape} is not a flow matrix (B, C, C')")
  check_same_shape("fsp_column_norm", student, teacher)
  counted = counted_examples("fsp_column_norm", where, student)
  student, teacher = keep(counted, student, teacher)
  return jnp.sum(l2_distance(student, teacher, axis=1)) / number(counted, student.shape[0])


def flow_of_solution(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("stage1", "stage2", "stage3"),
  stage_weights: Sequence[ArrayLike] | None = None,
  pool: Pool = "average",
  norm: Literal["mse", "columns"] = "mse",
  arrays: Arrays = "features",
  where: ArrayLike | str | None = None,
) -> Terms:
  """Flow of solution procedure: match the Gram matrices of adjacent stages.

  The sum over adjacent `stages` of `fsp_mse` (norm="mse") or `fsp_column_norm` (norm="columns")
  of the two networks' `flow_matrix`.

  Args:
    student: Output whose maps at `stages` have the teacher's channels, (B, H, W, C).
    teacher: Output likewise, constant. Sizes may differ: a flow matrix does not depend on them.
    stages: two or more names in the order of the network, or (student's, teacher's) pairs of
      names. n stages make n - 1 flows.
    stage_weights: one weight per flow; None weights all by 1.
    pool: pooling of the larger layer of a flow, "average" or "max".
    norm: how two flow matrices are compared.
    arrays: "features", or "preactivations", the same stages before their last activation.
    where: mask (B,) of the examples that count; see `flow_matrix`. A string is
      read as `arrays`, whose earlier name was `where`.

  Returns:
    Terms(feature=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage or option, or shapes that do not
      fit; it names the stage and both shapes.

  Source: Yim et al., "A Gift from Knowledge Distillation", CVPR 2017. The defaults are
  RepDistiller's, which also starts from the stem's output; the Zoo divides the sum by its three
  flows. torchdistill: `pool="max", norm="columns"`. The paper and RepDistiller first train on
  this loss alone and then on the labels, the Zoo on both at once.

  >>> maps = Output(features={"a": jnp.ones((2, 4, 4, 3)), "b": jnp.ones((2, 2, 2, 5))})
  >>> float(flow_of_solution(maps, maps, stages=["a", "b"]).total)
  0.0
  """
  where, arrays = mask_and_arrays(where, arrays)
  norms = {"mse": fsp_mse, "columns": fsp_column_norm}
  if norm not in norms:
    raise unknown_name("norm", norm, norms)
  pairs = stage_pairs(stages)
  if len(pairs) < 2:
    raise ConfigError(f"stages is {stages!r}: a flow goes between two stages, name at least two")
  if stage_weights is not None and len(stage_weights) != len(pairs) - 1:
    raise ConfigError(
      f"stage_weights are {len(stage_weights)}, flows between stages {len(pairs) - 1}: "
      "give one for each"
    )
  layers = [_layer(student, teacher, pair, arrays) for pair in pairs]
  total = jnp.float32(0)
  for i, ((s, t), (next_s, next_t)) in enumerate(itertools.pairwise(layers)):
    matrices = (flow_matrix(*pair, pool=pool, where=where) for pair in ((s, next_s), (t, next_t)))
    value = norms[norm](*matrices, where=where)
    total = total + (value if stage_weights is None else stage_weights[i] * value)
  return Terms(feature=total)


def _layer(
  student: Output, teacher: Output, pair: tuple[str, str], arrays: Arrays
) -> tuple[jax.Array, jax.Array]:
  """Return both networks' maps at one stage, checked to have the same channels."""
  what = "flow_of_solution"
  s = stage_arrays(student, pair[0], role="student", arrays=arrays, what=what)
  t = stage_arrays(teacher, pair[1], role="teacher", arrays=arrays, what=what)
  label = stage_label(pair)
  check_maps(f"{label}: flow_of_solution", s, t)
  if s.shape[3] != t.shape[3]:
    raise ConfigError(
      f"{label}: flow_of_solution: student {s.shape} and teacher {t.shape} differ in channels; "
      "an adapter (jaxkd.adapters) brings the student's to the teacher's"
    )
  return s, t
