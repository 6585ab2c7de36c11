"""OFD, the overhaul of feature distillation: partial L2 before the ReLU, above a margin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._checks import (
  Arrays,
  Stages,
  check_same_shape,
  over_stages,
  stage_pairs,
)
from jaxkd.losses._counting import counted_examples, keep
from jaxkd.losses._numerics import widen
from jaxkd.losses._resize import match_sizes
from jaxkd.losses._rkd_distances import AxisName
from jaxkd.types import Output, Terms

Reduction = Literal["sum", "batch", "mean"]

_REDUCTIONS: tuple[str, ...] = get_args(Reduction)
_HINT = "an adapter (jaxkd.adapters.Regressor without activation) brings one to the other"
# Below this probability of a negative value the margin is -3 standard deviations.
_RARE = 0.001


def batch_norm_margin(scale: ArrayLike, bias: ArrayLike) -> jax.Array:
  """Expected negative value of each channel behind a batch normalisation.

  m = E[x | x < 0] for x ~ N(b, a^2), with a = |scale| and b = bias:
  b - a phi(b/a) / Phi(-b/a); -3 a where Phi(-b/a) <= 0.001.

  Args:
    scale: (C,), the scale of the teacher's batch normalisation; its sign has no effect.
    bias: (C,), its bias.

  Returns:
    (C,), float32 or wider, without gradient; min(b, 0) where the scale is 0.

  Raises:
    ConfigError: if the shapes differ.

  Source: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, section 3.1, as
  get_margin_from_BN of the authors' code and mdistiller. The paper has no bound of the probability.

  >>> margins = batch_norm_margin(jnp.array([1.0, 1.0]), jnp.array([0.0, 4.0]))
  >>> [round(float(margin), 4) for margin in margins]
  [-0.7979, -3.0]
  """
  scale, bias = widen(scale, bias, what="batch_norm_margin")
  check_same_shape("batch_norm_margin", scale, bias, other="bias")
  a, b = lax.stop_gradient(jnp.abs(scale)), lax.stop_gradient(bias)
  ratio = b / jnp.where(a > 0, a, 1.0)
  below = jax.scipy.special.ndtr(-ratio)
  density = jnp.exp(-jnp.square(ratio) / 2) / math.sqrt(2 * math.pi)
  common = b - a * density / jnp.where(below > _RARE, below, 1.0)
  return jnp.where(a > 0, jnp.where(below > _RARE, common, -3 * a), jnp.minimum(b, 0.0))


def partial_l2(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  margin: ArrayLike | None = None,
  reduction: Reduction = "batch",
  axis_name: AxisName | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Squared difference to the teacher's values above a margin, where the difference matters.

  With t' = max(t, margin): (s - t')^2 where s > t' or t' > 0, else 0. A student's value below a
  target that the ReLU turns to 0 has no loss.

  Args:
    student: values before the ReLU, (B, ..., C).
    teacher: values of the same shape, constant.
    margin: (C,) or (B, C), usually negative: `batch_norm_margin`. None: for each channel the mean
      of the teacher's negative values in the batch.
    reduction: over the elements that count: their "sum", that sum over B ("batch"), or their
      "mean".
    axis_name: mapped axis (or axes): the loss is then that of the examples of all devices, on every
      device, and `lax.pmean` of the gradients is its gradient; with "sum", which has no mean over
      devices, of all devices, too.
    where: mask (B,), nonzero where an example counts; the others may hold any values. None: all
      count. With more axes, (B, T), an example counts if any position does.

  Returns:
    The loss, a scalar, float32 or wider; 0 for equal values above the margin, or if nothing counts.

  Raises:
    ConfigError: if shapes do not fit, or reduction is unknown.

  Source: Heo et al., ICCV 2019, eq. 3 and 4. "sum" is the authors' criterion, "batch" their trainer
  and mdistiller, "mean" with no margin the Zoo's. The authors' code and mdistiller differ in
  channels with a positive margin, where mdistiller is the formula above and the authors' mask
  has it, too: (s > t') or (t' > 0).

  >>> partial_l2(jnp.array([[2.0, -3.0]]), jnp.array([[1.0, -1.0]]), margin=jnp.array([-0.5, -0.5]))
  Array(1., dtype=float32)
  """
  if reduction not in _REDUCTIONS:
    raise unknown_name("reduction", reduction, _REDUCTIONS)
  student, teacher = widen(student, lax.stop_gradient(teacher), what="partial_l2")
  check_same_shape("partial_l2", student, teacher, _HINT)
  counted = counted_examples("partial_l2", where, student)
  student, teacher = keep(counted, student, teacher)
  if margin is None:
    margin = _negative_mean(teacher, axis_name)
  bound = _aligned(lax.stop_gradient(jnp.asarray(margin, teacher.dtype)), teacher)
  target = jnp.maximum(teacher, bound)
  matters = (student > target) | (target > 0)
  (squares,) = keep(counted, jnp.where(matters, jnp.square(student - target), 0.0))
  total = jnp.sum(squares)
  number = jnp.asarray(len(squares) if counted is None else jnp.sum(counted), total.dtype)
  if axis_name is not None:
    total, number = lax.psum((total, number), axis_name)
  if reduction == "sum":
    return total
  each = math.prod(squares.shape[1:]) if reduction == "mean" else 1
  return total / (each * jnp.maximum(number, 1))


def overhaul(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("stage1", "stage2", "stage3"),
  stage_weights: Sequence[ArrayLike] | None = None,
  margins: Sequence[ArrayLike] | None = None,
  scale: ArrayLike = 1 / 1000,
  reduction: Reduction = "batch",
  arrays: Arrays = "preactivations",
  axis_name: AxisName | None = None,
  where: ArrayLike | None = None,
) -> Terms:
  """OFD: scale * sum over stages of weight * `partial_l2`.

  Args:
    student: Output with pre-activations at `stages`, of the teacher's channels, through a
      connector: a 1x1 convolution and batch normalisation.
    teacher: Output likewise, constant. Of maps of two sizes, the larger is average-pooled first.
    stages: names, or (student's, teacher's) pairs of names, shallowest first.
    stage_weights: one weight per stage; None gives 1 to the last and half as much to each before
      it, 2^(i - n + 1) for i = 0 .. n - 1.
    margins: for each stage (C,) or (B, C), see `batch_norm_margin`; None takes them from the batch.
    scale: factor of the whole loss.
    reduction: within a stage, "sum", "batch" or "mean".
    arrays: which arrays are compared; "features" are those after the activation.
    axis_name: see `partial_l2`.
    where: mask (B,) of the examples that count; see `partial_l2`.

  Returns:
    Terms(feature=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage or option, another number of
      margins than of stages, or shapes that do not fit; it names the stage and both shapes.

  Source: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019. The defaults
  are the authors' trainer on CIFAR-100; for ImageNet they have `scale=1e-4`. mdistiller pools a
  larger teacher, the authors refuse one. The Zoo: `margins=None, reduction="mean"`.

  >>> maps = Output(preactivations={"stage3": jnp.ones((2, 4, 4, 3))})
  >>> float(overhaul(maps, maps, stages=["stage3"], margins=[jnp.zeros(3)]).total)
  0.0
  """
  count = len(stage_pairs(stages))
  if stage_weights is None:
    stage_weights = [2.0 ** (i - count + 1) for i in range(count)]
  if margins is not None and len(margins) != count:
    raise ConfigError(f"margins are {len(margins)}, stages {count}: give one for each")
  left = iter([None] * count if margins is None else margins)

  def kernel(s: jax.Array, t: jax.Array) -> jax.Array:
    s, t = widen(s, t)
    if s.ndim == t.ndim == 4:
      s, t = match_sizes(s, t)
    return partial_l2(
      s, t, margin=next(left), reduction=reduction, axis_name=axis_name, where=where
    )

  total = over_stages(
    kernel, student, teacher, stages, weights=stage_weights, arrays=arrays, what="overhaul"
  )
  return Terms(feature=scale * total)


def _negative_mean(teacher: jax.Array, axis_name: AxisName | None) -> jax.Array:
  """Mean of the negative values of each channel, (C,); 0 for a channel without."""
  axes = tuple(range(teacher.ndim - 1))
  # Examples that do not count are zeros.
  total = jnp.sum(jnp.minimum(teacher, 0), axis=axes)
  number = jnp.sum(teacher < 0, axis=axes).astype(teacher.dtype)
  if axis_name is not None:
    total, number = lax.psum((total, number), axis_name)
  # The Zoo adds 1e-6 to the number.
  return total / (number + 1e-6)


def _aligned(margin: jax.Array, teacher: jax.Array) -> jax.Array:
  """Give a margin (C,) or (B, C) the axes of the teacher (B, ..., C)."""
  if margin.shape not in (teacher.shape[-1:], (teacher.shape[0], teacher.shape[-1])):
    raise ConfigError(
      f"partial_l2: margin {margin.shape} does not fit teacher {teacher.shape}: expected (C,) or "
      "(B, C)"
    )
  examples = margin.shape[0] if margin.ndim == 2 else 1
  return margin.reshape(examples, *(1,) * (teacher.ndim - 2), margin.shape[-1])
