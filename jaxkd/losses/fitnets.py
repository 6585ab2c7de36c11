"""FitNets and SimKD: mean squared difference of features."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.losses._checks import Stages, check_same_shape, over_stages
from jaxkd.losses._counting import counted_examples, counted_tokens, keep, mean, mean_of_tokens
from jaxkd.losses._numerics import widen
from jaxkd.losses._resize import adaptive_average_pool, match_sizes
from jaxkd.types import Output, Terms

_HINT = "an adapter (jaxkd.adapters) brings one to the other"


def hint_mse(
  student: ArrayLike, teacher: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
  """Mean squared difference of two features: mean over every element of (s - t)^2.

  Args:
    student: features of any shape, usually the output of an adapter.
    teacher: features of the same shape, constant: they take no gradient.
    where: mask (B,), nonzero where an example counts; the others may hold any values. None: all
      count. With more axes, (B, T), an example counts if any position does; of features (B, T, D),
      its value is then the mean over its tokens that count.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts.

  Raises:
    ConfigError: if the shapes differ, or `where` does not fit them.

  Source: Romero et al., "FitNets", ICLR 2015, eq. 3, with the mean over every element of
  RepDistiller, mdistiller and SimKD. The authors' own code has 1/2 and sums over one axis.

  >>> hint_mse(jnp.ones((2, 4, 4, 3)), jnp.zeros((2, 4, 4, 3)))
  Array(1., dtype=float32)
  """
  student, teacher = widen(student, lax.stop_gradient(teacher), what="hint_mse")
  check_same_shape("hint_mse", student, teacher, _HINT)
  counted = counted_examples("hint_mse", where, student)
  student, teacher = keep(counted, student, teacher)
  tokens = counted_tokens("hint_mse", where, student)
  student, teacher = keep(tokens, student, teacher)
  squares = jnp.square(student - teacher)
  return mean(squares, counted) if tokens is None else mean_of_tokens(squares, tokens, counted)


def fitnets(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("stage2",),
  stage_weights: Sequence[ArrayLike] | None = None,
  where: ArrayLike | None = None,
) -> Terms:
  """FitNets: mean squared difference of the student's (regressed) and the teacher's features.

  The sum over stages of `hint_mse`. A teacher's map that is larger than the student's is first
  average-pooled to the student's size; a larger student's map is an error.

  Args:
    student: Output whose features at `stages` have the teacher's channels, as
      `jaxkd.adapters.Regressor` gives them. (B, H, W, C), (B, T, D) or (B, D).
    teacher: Output with the same stages, constant.
    stages: names, or (student's, teacher's) pairs of names.
    stage_weights: one weight per stage; None weights all by 1.
    where: mask (B,) of the examples that count; see `hint_mse`.

  Returns:
    Terms(feature=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage, or shapes that do not fit; it
      names the stage and both shapes.

  Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, as the one-stage form of
  RepDistiller and mdistiller, which use one middle stage and weight 100. Pooling the teacher is
  SimKD's ConvReg; the other two refuse such sizes.

  >>> maps = Output(features={"stage2": jnp.ones((2, 4, 4, 3))})
  >>> float(fitnets(maps, maps).total)
  0.0
  """

  def kernel(s: jax.Array, t: jax.Array) -> jax.Array:
    s, t = widen(s, t)
    if s.ndim == t.ndim == 4 and s.shape[1] <= t.shape[1]:
      t = adaptive_average_pool(t, *s.shape[1:3])
    return hint_mse(s, t, where=where)

  value = over_stages(kernel, student, teacher, stages, weights=stage_weights, what="fitnets")
  return Terms(feature=value)


def simkd(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("stage3",),
  stage_weights: Sequence[ArrayLike] | None = None,
  where: ArrayLike | None = None,
) -> Terms:
  """SimKD: mean squared difference of the student's projected and the teacher's last features.

  The sum over stages of `hint_mse`, the larger of two maps average-pooled to the smaller
  (`match_sizes`). It is the only training signal of SimKD, which uses neither labels nor logits:
  the student predicts through the teacher's classifier.

  Args:
    student: Output whose features at `stages` have the teacher's channels and rank, (B, H, W, C)
      or (B, C), as `jaxkd.adapters.Projector` gives them (it pools larger maps before projecting).
    teacher: Output with the same stages, constant.
    stages: names, or (student's, teacher's) pairs of names.
    stage_weights: one weight per stage; None weights all by 1.
    where: mask (B,) of the examples that count; see `hint_mse`.

  Returns:
    Terms(feature=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage, or shapes that do not fit; it
      names the stage and both shapes.

  Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022,
  eq. 2, as the authors' code.

  >>> maps = lambda size: Output(features={"stage3": jnp.ones((2, size, size, 3))})
  >>> float(simkd(maps(8), maps(4)).total)
  0.0
  """

  def kernel(s: jax.Array, t: jax.Array) -> jax.Array:
    return hint_mse(*match_sizes(*widen(s, t)), where=where)

  value = over_stages(kernel, student, teacher, stages, weights=stage_weights, what="simkd")
  return Terms(feature=value)
