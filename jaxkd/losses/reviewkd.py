"""ReviewKD: differences of maps at several spatial levels (the hierarchical context loss)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses._checks import Stages, check_same_shape, over_stages
from jaxkd.losses._counting import counted_examples, keep, mean
from jaxkd.losses._numerics import widen
from jaxkd.losses._resize import adaptive_average_pool
from jaxkd.types import Output, Terms

# Sizes to which maps are pooled, where they are smaller than the map.
LEVELS = (4, 2, 1)

_HINT = "an adapter (jaxkd.adapters.ReviewFusion) brings one to the other"


def hierarchical_context_mse(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  levels: Sequence[int] = LEVELS,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Mean squared difference of two maps and of their averages at coarser levels.

  sum_j 2^-j mse(pool_j s, pool_j t) / sum_j 2^-j over j = 0, 1, ...: pool_0 is the map itself, the
  others average-pool to l x l for each l of `levels`, in order, that is smaller than the height H.
  A level that is not smaller is left out and does not count in j.

  Args:
    student: (B, H, W, C), usually fused by `jaxkd.adapters.ReviewFusion`; or (B, C), whose only
      level is the vector itself.
    teacher: the same shape, constant.
    levels: sizes l.
    where: mask (B,), nonzero where an example counts; the others may hold any values. None: all
      count. With more axes, (B, T), an example counts if any position does.

  Returns:
    The loss, a scalar, float32 or wider; 0 for equal features, or if nothing counts.

  Raises:
    ConfigError: if the shapes differ, are neither (B, H, W, C) nor (B, C), a level is not positive,
      or `where` does not fit.

  Source: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, section 3.4, as `hcl`
  of the authors and `hcl_loss` of mdistiller, which compare the height alone with a level. The
  paper gives neither the weights nor the levels.

  >>> hierarchical_context_mse(jnp.ones((2, 4, 4, 3)), jnp.zeros((2, 4, 4, 3)))
  Array(1., dtype=float32)
  """
  what = "hierarchical_context_mse"
  student, teacher = widen(student, lax.stop_gradient(teacher), what=what)
  check_same_shape(what, student, teacher, _HINT)
  if student.ndim not in (2, 4):
    raise ConfigError(f"{what}: features {student.shape} are neither (B, H, W, C) nor (B, C)")
  if any(level < 1 for level in levels):
    raise ConfigError(f"levels is {tuple(levels)}: expected numbers of at least 1")
  counted = counted_examples(what, where, student)
  gap = jnp.subtract(*keep(counted, student, teacher))
  total, weight, weights = mean(jnp.square(gap), counted), 1.0, 1.0
  height = gap.shape[1] if gap.ndim == 4 else 1
  for level in levels:
    if level < height:
      weight /= 2
      weights += weight
      # The pooling is linear: that of the difference is the difference of both.
      pooled = adaptive_average_pool(gap, level, level)
      total += weight * mean(jnp.square(pooled), counted)
  return total / weights


def knowledge_review(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("stage1", "stage2", "stage3", "pooled"),
  stage_weights: Sequence[ArrayLike] | None = None,
  levels: Sequence[int] = LEVELS,
  where: ArrayLike | None = None,
) -> Terms:
  """ReviewKD: the sum over stages of `hierarchical_context_mse`.

  Args:
    student: Output with features at `stages`, (B, H, W, C) or (B, C): the student's maps, fused
      from deep to shallow by `jaxkd.adapters.ReviewFusion`.
    teacher: Output likewise, of the same shapes, constant.
    stages: names, or (student's, teacher's) pairs of names.
    stage_weights: one weight per stage; None weights all by 1.
    levels: sizes to which maps are pooled.
    where: mask (B,) of the examples that count; see `hierarchical_context_mse`.

  Returns:
    Terms(feature=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage, or shapes that differ; it names
      the stage and both shapes.

  Source: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, eq. 8, as the
  authors' code and mdistiller, which agree: all stages but the stem, and the pooled vector. The
  teacher's maps are there those before the last ReLU.

  >>> maps = Output(features={"stage3": jnp.ones((2, 4, 4, 3))})
  >>> float(knowledge_review(maps, maps, stages=["stage3"]).total)
  0.0
  """
  kernel = functools.partial(hierarchical_context_mse, levels=levels, where=where)
  total = over_stages(
    kernel, student, teacher, stages, weights=stage_weights, what="knowledge_review"
  )
  return Terms(feature=total)
