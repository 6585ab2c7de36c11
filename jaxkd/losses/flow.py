"""Flow: what is matched is how one layer's channels go with the next one's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses.checks import check_maps, check_same_shape
from jaxkd.losses.norms import l2_norm
from jaxkd.losses.precision import widen
from jaxkd.losses.products import channel_products
from jaxkd.losses.spatial import adaptive_average_pool, adaptive_max_pool
from jaxkd.losses.stages import Stages, Where, stage_arrays, stage_pairs
from jaxkd.types import Output, Terms

Pool = Literal["average", "max"]

_POOLS: dict[str, Callable[[ArrayLike, int, int], jax.Array]] = {
  "average": adaptive_average_pool,
  "max": adaptive_max_pool,
}


def flow_matrix(first: ArrayLike, second: ArrayLike, *, pool: Pool = "average") -> jax.Array:
  """The FSP matrix of two layers: G[b, i, j] = mean over (h, w) of x[b, h, w, i] y[b, h, w, j].

  Args:
    first: x, a layer's feature maps (B, H, W, C).
    second: y, a later layer's (B, H', W', C'). Where sizes differ, the larger one is pooled to
      the smaller, in each axis.
    pool: "average" or "max", how it is pooled.

  Returns:
    (B, C, C'), float32 or wider. It does not change if both layers' places are shuffled alike.

  Raises:
    ConfigError: if either is not (B, H, W, C), the batch sizes differ, or pool is unknown.

  Source: Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization
  and Transfer Learning", CVPR 2017. RepDistiller and the Zoo average; torchdistill takes
  `pool="max"`.

  >>> flow_matrix(jnp.ones((1, 4, 4, 2)), 3.0 * jnp.ones((1, 2, 2, 1))).shape
  (1, 2, 1)
  """
  first, second = widen(first, second)
  for name, x in (("first", first), ("second", second)):
    if x.ndim != 4:
      raise ConfigError(f"flow_matrix: {name} {x.shape} is not a feature map (B, H, W, C)")
  if first.shape[0] != second.shape[0]:
    raise ConfigError(
      f"flow_matrix: first {first.shape} and second {second.shape} differ in batch size"
    )
  if pool not in _POOLS:
    raise unknown_name("pool", pool, _POOLS)
  rows, columns = (min(first.shape[axis], second.shape[axis]) for axis in (1, 2))
  first, second = (_POOLS[pool](x, rows, columns) for x in (first, second))
  products = channel_products(first, second)
  return products / (rows * columns)


def fsp_mse(student: ArrayLike, teacher: ArrayLike) -> jax.Array:
  """Mean squared difference of two flow matrices: mean over B, C, C' of (G_s - G_t)^2.

  Args:
    student: (B, C, C'), as `flow_matrix` gives it.
    teacher: (B, C, C'), constant.

  Returns:
    The loss, a scalar, float32 or wider.

  Raises:
    ConfigError: if the shapes differ.

  Source: Yim et al., "A Gift from Knowledge Distillation", CVPR 2017, with the mean over the matrix
  of RepDistiller and the Zoo. The paper sums over the matrix: C C' times this.

  >>> fsp_mse(jnp.ones((2, 3, 4)), jnp.zeros((2, 3, 4)))
  Array(1., dtype=float32)
  """
  student, teacher = widen(student, lax.stop_gradient(teacher))
  check_same_shape("fsp_mse", student, teacher)
  return jnp.mean(jnp.square(student - teacher))


def fsp_column_norm(student: ArrayLike, teacher: ArrayLike) -> jax.Array:
  """Distance of two flow matrices: mean over B of the sum over columns j of |G_s - G_t|_2.

  The norm of a column is over the first layer's channels, and is not squared.

  Args:
    student: (B, C, C'), as `flow_matrix` gives it.
    teacher: (B, C, C'), constant.

  Returns:
    The loss, a scalar, float32 or wider. A norm has a kink at 0, where its gradient is 0 and of
    full size beside it. Columns that differ by less than rounding, 16 machine epsilons of the
    teacher's norm, count as equal, lest equal networks get a gradient of noise.

  Raises:
    ConfigError: if the shapes are not (B, C, C') or differ.

  Source: torchdistill's FSPLoss. Yim et al., "A Gift from Knowledge Distillation", CVPR 2017,
  square the difference (`fsp_mse`).

  >>> fsp_column_norm(3.0 * jnp.ones((1, 4, 2)), jnp.zeros((1, 4, 2)))
  Array(12., dtype=float32)
  """
  student, teacher = widen(student, lax.stop_gradient(teacher))
  if student.ndim != 3:
    raise ConfigError(f"fsp_column_norm: student {student.shape} is not a flow matrix (B, C, C')")
  check_same_shape("fsp_column_norm", student, teacher)
  norms = l2_norm(student - teacher, axis=1)
  rounding = 16 * float(jnp.finfo(teacher.dtype).eps) * l2_norm(teacher, axis=1)
  return jnp.sum(jnp.where(norms > rounding, norms, 0.0)) / student.shape[0]


def flow_of_solution(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("stage1", "stage2", "stage3"),
  stage_weights: Sequence[ArrayLike] | None = None,
  pool: Pool = "average",
  norm: Literal["mse", "columns"] = "mse",
  where: Where = "features",
) -> Terms:
  """Flow of solution procedure: the student goes from layer to layer as the teacher does.

  The sum over adjacent `stages` of `fsp_mse` (norm="mse") or `fsp_column_norm` (norm="columns")
  of the two networks' `flow_matrix`.

  Args:
    student: Output whose maps at `stages` have the teacher's channels, (B, H, W, C).
    teacher: Output likewise, constant. Sizes may differ: a flow matrix has none.
    stages: two or more names in the order of the network, or (student's, teacher's) pairs of
      names. n stages make n - 1 flows.
    stage_weights: one weight per flow; None weighs them all 1.
    pool: "average" or "max", how the larger layer of a flow is pooled.
    norm: how two flow matrices are compared.
    where: "features", or "preactivations", the same stages before their last activation.

  Returns:
    Terms(feature=...), float32 or wider.

  Raises:
    ConfigError: naming the stage and both shapes, the stages there are, or the option's value.

  Source: Yim et al., "A Gift from Knowledge Distillation", CVPR 2017. The defaults are
  RepDistiller's, which also starts from the stem's output; the Zoo divides the sum by its three
  flows. torchdistill: `pool="max", norm="columns"`. The paper and RepDistiller first train on
  this loss alone and then on the labels, the Zoo on both at once.

  >>> maps = Output(features={"a": jnp.ones((2, 4, 4, 3)), "b": jnp.ones((2, 2, 2, 5))})
  >>> float(flow_of_solution(maps, maps, stages=["a", "b"]).total)
  0.0
  """
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
  layers = [_layer(student, teacher, ours, theirs, where) for ours, theirs in pairs]
  total = jnp.float32(0)
  for i, ((s, t), (next_s, next_t)) in enumerate(itertools.pairwise(layers)):
    value = norms[norm](flow_matrix(s, next_s, pool=pool), flow_matrix(t, next_t, pool=pool))
    total = total + (value if stage_weights is None else stage_weights[i] * value)
  return Terms(feature=total)


def _layer(
  student: Output, teacher: Output, ours: str, theirs: str, where: Where
) -> tuple[jax.Array, jax.Array]:
  """Both networks' maps at one stage, checked to have the same channels."""
  s = stage_arrays(student, ours, who="student", where=where)
  t = stage_arrays(teacher, theirs, who="teacher", where=where)
  place = f"stage {ours!r}" if ours == theirs else f"stages {ours!r} and {theirs!r}"
  check_maps(f"{place}: flow_of_solution", s, t)
  if s.shape[3] != t.shape[3]:
    raise ConfigError(
      f"{place}: flow_of_solution: student {s.shape} and teacher {t.shape} differ in channels; "
      "a connector (jaxkd.connectors) brings the student's to the teacher's"
    )
  return s, t
