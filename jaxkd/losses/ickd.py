"""Inter-channel correlation (ICKD): which channels of a map are active at the same positions."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses._checks import Stages, check_maps, over_stages
from jaxkd.losses._counting import counted_examples, keep, mean
from jaxkd.losses._numerics import channel_gram, power_of_two, widen
from jaxkd.losses._units import unit_vectors
from jaxkd.types import Output, Terms


def channel_correlation_mse(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  eps: float | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Squared difference of the channels' correlations: mean over B of sum_ij (G_ij - G'_ij)^2 / C.

  Row i of G is g_i / |g_i|, where g_ij = sum_hw x_hwi x_hwj, and G' is the teacher's.

  Args:
    student: (B, H, W, C), usually the output of an adapter.
    teacher: (B, H', W', C), constant. Its size may differ.
    eps: None: a channel of zeros has correlations 0, and its row takes no gradient. A number: rows
      are g_i / max(|g_i|, eps), by which such a row takes the gradient of a division by eps.
    where: mask (B,) of the examples that count; others may hold any values. None: all count. With
      more axes, an example counts if any position does.

  Returns:
    The loss, a scalar, float32 or wider, invariant to the scale of either side and to the order of
    the positions.

  Raises:
    ConfigError: if one is not a map, batch sizes or channels differ, or `where` does not fit.

  Source: Liu et al., "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge
  Distillation", ICCV 2021, as the authors' ICKDLoss, with eps 1e-12. The paper (eq. 4) divides by
  C^2 and does not normalise the rows; the code divides by C.

  >>> x = jnp.array([[[[1.0, 0.0], [0.0, 1.0]]]])
  >>> channel_correlation_mse(x, jnp.ones((1, 3, 3, 2))).round(4)
  Array(0.5858, dtype=float32)
  """
  what = "channel_correlation_mse"
  student, teacher = widen(student, lax.stop_gradient(teacher), what=what)
  check_maps(what, student, teacher)
  if student.shape[3] != teacher.shape[3]:
    raise ConfigError(
      f"{what}: student {student.shape} and teacher {teacher.shape} differ in channels; an adapter "
      "(jaxkd.adapters) brings one to the other"
    )
  counted = counted_examples(what, where, student)
  student, teacher = keep(counted, student, teacher)
  gap = _correlations(student, eps) - _correlations(teacher, eps)
  return mean(jnp.sum(jnp.square(gap), axis=(1, 2)) / gap.shape[1], counted)


def inter_channel_correlation(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("stage3",),
  stage_weights: Sequence[ArrayLike] | None = None,
  eps: float | None = None,
  where: ArrayLike | None = None,
) -> Terms:
  """Inter-channel correlation (ICKD): the sum over stages of `channel_correlation_mse`.

  Args:
    student: Output with maps at `stages`, of the teacher's channels; the authors' adapter is a 1x1
      convolution without bias, and batch normalisation.
    teacher: Output likewise, constant. Sizes may differ.
    stages: names, or (student's, teacher's) pairs of names.
    stage_weights: one weight per stage; None weights all by 1.
    eps: see `channel_correlation_mse`.
    where: mask (B,) of the examples that count.

  Returns:
    Terms(feature=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage, or shapes that do not fit; it
      names the stage and both shapes.

  Source: Liu et al., "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge
  Distillation", ICCV 2021: ICKD-C of the authors' code for CIFAR-100, at the last stage before
  pooling, with weight 2.5. Its form with patches (ICKD-S) has no published loss.

  >>> maps = Output(features={"stage3": jnp.ones((2, 4, 4, 3))})
  >>> float(inter_channel_correlation(maps, maps).total)
  0.0
  """
  kernel = functools.partial(channel_correlation_mse, eps=eps, where=where)
  what = "inter_channel_correlation"
  total = over_stages(kernel, student, teacher, stages, weights=stage_weights, what=what)
  return Terms(feature=total)


def _correlations(x: jax.Array, eps: float | None) -> jax.Array:
  """Return the normalised rows of the Gram matrices (B, C, C) of the channels of maps."""
  # Values near 1 have products that float32 can hold. The scale cancels.
  scale = power_of_two(jnp.max(jnp.abs(x), axis=(1, 2, 3), keepdims=True, initial=0.0))
  gram = channel_gram(x / scale)
  return unit_vectors(gram, 2, None if eps is None else eps / jnp.square(scale[..., 0]))
