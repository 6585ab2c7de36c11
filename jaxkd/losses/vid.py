"""Variational information distillation (VID): a Gaussian of the teacher's features."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses._checks import (
  Stages,
  check_same_shape,
  stage_arrays,
  stage_label,
  stage_pairs,
)
from jaxkd.losses._counting import counted_examples, counted_tokens, keep, mean, mean_of_tokens
from jaxkd.losses._numerics import widen
from jaxkd.losses._resize import match_sizes
from jaxkd.types import Output, Terms


def gaussian_log_loss(
  student: ArrayLike,
  teacher: ArrayLike,
  variance: ArrayLike,
  *,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Negative log-likelihood of features: mean over every element of ((m - t)^2 / v + log v) / 2.

  The constant log(2 pi) / 2 is left out, so that the value is negative where v is small.

  Args:
    student: the predicted mean m of the teacher's features, (B, ..., C).
    teacher: features t of the same shape, constant.
    variance: v, (C,), or any shape that broadcasts to the features'; positive.
    where: mask (B,), nonzero where an example counts; the others may hold any values. None: all
      count. With more axes, (B, T), an example counts if any position does; of features (B, T, D),
      its value is then the mean over its tokens that count.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts.

  Raises:
    ConfigError: if the shapes differ, or `where` or the variance do not fit them.

  Source: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019,
  eq. 5, as RepDistiller's VIDLoss, mdistiller and torchdistill, which take the mean over elements.

  >>> gaussian_log_loss(jnp.ones((2, 3)), jnp.zeros((2, 3)), jnp.ones(3))
  Array(0.5, dtype=float32)
  """
  what = "gaussian_log_loss"
  student, teacher, variance = widen(student, lax.stop_gradient(teacher), variance, what=what)
  check_same_shape(what, student, teacher, "an adapter (jaxkd.adapters) brings one to the other")
  try:
    variance = jnp.broadcast_to(variance, student.shape)
  except ValueError:
    raise ConfigError(
      f"{what}: variance {variance.shape} does not fit features {student.shape}: expected "
      f"({student.shape[-1]},), one for each channel"
    ) from None
  counted = counted_examples(what, where, student)
  student, teacher = keep(counted, student, teacher)
  tokens = counted_tokens(what, where, student)
  student, teacher = keep(tokens, student, teacher)
  values = (jnp.square(student - teacher) / variance + jnp.log(variance)) / 2
  return mean(values, counted) if tokens is None else mean_of_tokens(values, tokens, counted)


def variational_information(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("stage1", "stage2", "stage3"),
  stage_weights: Sequence[ArrayLike] | None = None,
  where: ArrayLike | None = None,
) -> Terms:
  """Variational information distillation (VID): the sum over stages of `gaussian_log_loss`.

  A teacher's map that is larger than the student's is first average-pooled to its size.

  Args:
    student: Output with the predicted means at `stages` and their variances (C,) at
      "STAGE_variance", as `jaxkd.adapters.VariationalRegressors` gives them.
    teacher: Output with the features, constant.
    stages: names, or (student's, teacher's) pairs of names.
    stage_weights: one weight per stage; None weights all by 1.
    where: mask (B,) of the examples that count; see `gaussian_log_loss`.

  Returns:
    Terms(feature=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage, or shapes that do not fit; it
      names the stage and both shapes.

  Source: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, as
  RepDistiller, with all stages and weight 1. mdistiller keeps the variances in a list that its
  optimizer does not see: they never learn there, though the paper's do.

  >>> ones = {"stage1": jnp.ones((2, 4, 4, 3))}
  >>> predicted = Output(features={**ones, "stage1_variance": jnp.ones(3)})
  >>> float(variational_information(predicted, Output(features=ones), stages=["stage1"]).total)
  0.0
  """
  what = "variational_information"
  pairs = stage_pairs(stages)
  if stage_weights is not None and len(stage_weights) != len(pairs):
    raise ConfigError(
      f"stage_weights are {len(stage_weights)}, stages {len(pairs)}: give one for each"
    )
  total = jnp.float32(0)
  for i, pair in enumerate(pairs):
    s, v = (
      stage_arrays(student, name, role="student", what=what)
      for name in (pair[0], f"{pair[0]}_variance")
    )
    t = stage_arrays(teacher, pair[1], role="teacher", what=what)
    try:
      s, t = widen(s, t, what=what)
      if s.ndim == t.ndim == 4 and s.shape[1] < t.shape[1]:
        s, t = match_sizes(s, t)
      value = gaussian_log_loss(s, t, v, where=where)
    except ConfigError as error:
      raise ConfigError(f"{stage_label(pair)}: {error}") from error
    total = total + (value if stage_weights is None else stage_weights[i] * value)
  return Terms(feature=total)
