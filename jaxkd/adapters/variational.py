"""VID's regressors: mean and variance of the teacher's features, from the student's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.errors import ConfigError
from jaxkd.losses._resize import adaptive_average_pool
from jaxkd.types import Batch, Output


class VariationalRegressor(nn.Module):
  """Three 1x1 convolutions to the mean of the teacher's features, and a variance per channel.

  Mean: C_s -> middle -> middle -> C_t without biases, with ReLUs between them. A student's map with
  more rows than the teacher's is average-pooled to its size first. Variance: softplus(a) + eps, of
  the learned `log_scale` a.

  Attributes:
    size: the teacher's (height, width); None for features (B, D), or of tokens (B, T, D), which
      take dense layers.
    channels: the teacher's channels, C_t.
    middle: width between the convolutions; None: C_t.
    eps: lower bound of a variance.
    initial_variance: the variance at the start.
    dtype: dtype of the means; parameters and variances stay float32.

  Parameters: "conv1".."conv3" {"kernel"}, and "log_scale" (C_t,).

  Source: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019,
  as RepDistiller's VIDLoss.
  """

  size: tuple[int, int] | None
  channels: int
  middle: int | None = None
  eps: float = 1e-5
  initial_variance: float = 5.0
  dtype: Any = None

  @nn.compact
  def __call__(self, features: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
    """Map (B, H, W, C_s), (B, T, D) or (B, D) to the means, and to the variances (C_t,)."""
    x = features
    if x.ndim not in ((2, 3) if self.size is None else (4,)):
      raise ConfigError(f"VariationalRegressor of size {self.size} cannot take features {x.shape}")
    if self.size is not None and x.shape[1] > self.size[0]:
      x = adaptive_average_pool(x, *self.size)
    middle = self.middle or self.channels
    for i, width in enumerate((middle, middle, self.channels), start=1):
      options: dict[str, Any] = {"use_bias": False, "dtype": self.dtype, "name": f"conv{i}"}
      x = nn.Dense(width, **options)(x) if x.ndim < 4 else nn.Conv(width, (1, 1), **options)(x)
      x = nn.relu(x) if i < 3 else x
    start = math.log(math.expm1(self.initial_variance - self.eps))
    scale = self.param("log_scale", nn.initializers.constant(start), (self.channels,), jnp.float32)
    return x, jax.nn.softplus(scale) + self.eps


class VariationalRegressors(nn.Module):
  """An adapter with a `VariationalRegressor` at each of the student's stages.

  The student's features become the means, and "STAGE_variance" their variances, for
  `jaxkd.losses.variational_information`.

  Attributes:
    modules: stage -> regressor.
  """

  modules: Mapping[str, VariationalRegressor]

  def __call__(self, inputs: tuple[Output, Any, Batch], train: bool) -> tuple[Output, Any]:
    """Map (student, teacher, batch) to (student, teacher) with the student's features replaced."""
    student, teacher, _ = inputs
    found = dict(student.features)
    for stage, module in self.modules.items():
      found[stage], found[f"{stage}_variance"] = module(student.features[stage], train)
    return dataclasses.replace(student, features=found), teacher


def variational_regressor_for(
  student_shape: Sequence[int], teacher_shape: Sequence[int], *, stage: str, **options: Any
) -> VariationalRegressor:
  """Return the VariationalRegressor between two features.

  Args:
    student_shape: (B, H, W, C), (B, T, D) or (B, D).
    teacher_shape: likewise; the batch size is not used.
    stage: name of the stage, for the error.
    **options: other attributes of VariationalRegressor.

  Raises:
    ConfigError: naming the stage and both shapes, if one is a map and the other is not, the numbers
      of tokens differ, or the student has more rows and fewer columns.

  >>> variational_regressor_for((2, 8, 8, 16), (2, 4, 4, 32), stage="stage2").size
  (4, 4)
  """
  student, teacher = tuple(student_shape), tuple(teacher_shape)
  where = f"stage {stage!r}: no regressor from student {student} to teacher {teacher}"
  if len(student) == len(teacher) in (2, 3) and student[1:-1] == teacher[1:-1]:
    return VariationalRegressor(size=None, channels=teacher[-1], **options)
  if not len(student) == len(teacher) == 4:
    raise ConfigError(f"{where}: both must be (B, H, W, C), (B, T, D) or (B, D)")
  if student[1] > teacher[1] and student[2] < teacher[2]:
    raise ConfigError(f"{where}: the student has more rows but fewer columns")
  return VariationalRegressor(size=(teacher[1], teacher[2]), channels=teacher[-1], **options)
