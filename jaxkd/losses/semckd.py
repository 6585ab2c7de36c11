"""SemCKD: differences of several pairs of layers, weighted by an attention for each example."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses._checks import Stages, check_same_shape, over_stages, stage_pairs
from jaxkd.losses._counting import counted_examples, keep
from jaxkd.losses._numerics import widen
from jaxkd.losses._rkd_distances import AxisName
from jaxkd.types import Output, Terms

_HINT = "an adapter (jaxkd.adapters.SemanticCalibration) brings one to the other"


def weighted_mse(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  weights: ArrayLike | None = None,
  axis_name: AxisName | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Mean squared difference of two features with a weight for each example.

  1/B sum_b w_b mean((s_b - t_b)^2), the inner mean over every element of an example.

  Args:
    student: (B, ...).
    teacher: the same shape, constant.
    weights: w (B,), which takes a gradient; None: 1.
    axis_name: mapped axis (or axes): the mean is over the examples of all devices. Every device
      gets this loss, and `lax.pmean` of the gradients is its gradient.
    where: mask (B,), nonzero where an example counts; the others may hold any values. None: all
      count. With more axes, (B, T), an example counts if any position does.

  Returns:
    The loss, a scalar, float32 or wider; 0 for equal features, or if nothing counts.

  Raises:
    ConfigError: if the shapes differ, or weights or mask do not fit.

  Source: Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021, eq. 9, one
  pair of layers, as SemCKDLoss of the authors' code.

  >>> weighted_mse(jnp.ones((2, 3)), jnp.zeros((2, 3)), weights=jnp.array([0.5, 1.0]))
  Array(0.75, dtype=float32)
  """
  student, teacher = widen(student, lax.stop_gradient(teacher), what="weighted_mse")
  check_same_shape("weighted_mse", student, teacher, _HINT)
  counted = counted_examples("weighted_mse", where, student)
  student, teacher = keep(counted, student, teacher)
  squares = jnp.square(student - teacher).reshape(student.shape[0], -1)
  each = jnp.mean(squares, axis=1)
  if weights is not None:
    (factors,) = keep(counted, jnp.asarray(weights, each.dtype))
    if factors.shape != each.shape:
      raise ConfigError(
        f"weighted_mse: weights {factors.shape} do not fit features {student.shape}: expected (B,)"
      )
    each = factors * each
  total = jnp.sum(each)
  number = jnp.asarray(len(each) if counted is None else jnp.sum(counted), total.dtype)
  if axis_name is not None:
    total, number = lax.psum((total, number), axis_name)
  return total / jnp.maximum(number, 1)


def semantic_calibration(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("stage1", "stage2", "stage3"),
  attention: Sequence[ArrayLike] | None = None,
  layers: int = 1,
  axis_name: AxisName | None = None,
  where: ArrayLike | None = None,
) -> Terms:
  """SemCKD: 1/layers times the sum over pairs of layers of `weighted_mse`.

  Args:
    student: Output with features at `stages`: the student's layers, projected for each layer of the
      teacher that they are compared with, as `jaxkd.adapters.SemanticCalibration` gives them.
    teacher: Output likewise, of the same shapes, constant.
    stages: names, or (student's, teacher's) pairs of names, one for each pair of layers.
    attention: one weight (B,) of the examples for each of `stages`; of one layer of the student
      they sum to 1 over the teacher's. They take a gradient. None: 1.
    layers: number of layers of the student.
    axis_name: see `weighted_mse`.
    where: mask (B,) of the examples that count; see `weighted_mse`.

  Returns:
    Terms(feature=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage, another number of weights than of
      stages, or shapes that differ; it names the stage and both shapes.

  Source: Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021, eq. 9, as
  the authors' code, which divides by the number of the student's layers as well as by B.

  >>> maps = Output(features={"stage3": jnp.ones((2, 4, 4, 3))})
  >>> float(semantic_calibration(maps, maps, stages=["stage3"]).total)
  0.0
  """
  count = len(stage_pairs(stages))
  if attention is not None and len(attention) != count:
    raise ConfigError(f"attention has {len(attention)} weights, stages {count}: give one for each")
  if layers < 1:
    raise ConfigError(f"layers is {layers}: expected at least 1")
  left = iter([None] * count if attention is None else attention)

  def kernel(s: jax.Array, t: jax.Array) -> jax.Array:
    return weighted_mse(s, t, weights=next(left), axis_name=axis_name, where=where)

  total = over_stages(kernel, student, teacher, stages, what="semantic_calibration")
  return Terms(feature=total / layers)
