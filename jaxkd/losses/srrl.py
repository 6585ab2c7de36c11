"""Softmax regression (SRRL): the teacher's classifier on the student's features."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.losses._checks import Stages, check_same_shape, logits_of, over_stages
from jaxkd.losses._counting import counted_positions, keep, mean
from jaxkd.losses._numerics import widen
from jaxkd.losses.fitnets import hint_mse
from jaxkd.types import Output, Terms


def logit_mse(
  student: ArrayLike, teacher: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
  """Mean squared difference of logits: mean over positions and classes of (s - t)^2.

  Args:
    student: (..., C), such as (B, C).
    teacher: logits of the same shape, constant.
    where: mask of the positions that count, with the first or all of the leading axes; others may
      hold any values. None: all count.

  Returns:
    The loss, a scalar, float32 or wider. A class to which either gives a logit of -inf, so that it
    is impossible, adds 0 and takes no gradient.

  Raises:
    ConfigError: if the shapes differ, or `where` does not fit.

  Source: Yang et al., "Knowledge Distillation via Softmax Regression Representation Learning",
  ICLR 2021, eq. 7, as the authors' code.

  >>> logit_mse(jnp.array([[1.0, 3.0]]), jnp.array([[0.0, 0.0]]))
  Array(5., dtype=float32)
  """
  student, teacher = widen(student, lax.stop_gradient(teacher), what="logit_mse")
  check_same_shape("logit_mse", student, teacher, "both are logits of the same classes")
  counted = counted_positions("logit_mse", where, student)
  student, teacher = keep(counted, student, teacher)
  possible = (student > -jnp.inf) & (teacher > -jnp.inf)
  student, teacher = (jnp.where(possible, x, 0.0) for x in (student, teacher))
  return mean(jnp.square(student - teacher), counted)


def softmax_regression(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("stage3",),
  stage_weights: Sequence[ArrayLike] | None = None,
  logit_weight: ArrayLike = 1.0,
  where: ArrayLike | None = None,
) -> Terms:
  """Softmax regression (SRRL): features, and logits of the teacher's classifier for them.

  The sum over stages of `hint_mse` of the maps' means over space, and logit_weight times
  `logit_mse` of the logits.

  Args:
    student: Output with features at `stages` of the teacher's channels, (B, H, W, C) or (B, C), and
      with the logits of the teacher's classifier for them, whose gradient flows to the features.
    teacher: Output with features and logits, constant. Sizes of maps may differ.
    stages: names, or (student's, teacher's) pairs of names.
    stage_weights: one weight per stage; None weights all by 1.
    logit_weight: weight of the logits.
    where: mask (B,) of the examples that count; see the kernels.

  Returns:
    Terms(feature=..., logit=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, no logits, an unknown stage, or shapes that do not
      fit; it names the stage and both shapes.

  Source: Yang et al., "Knowledge Distillation via Softmax Regression Representation Learning", ICLR
  2021, eq. 4 and 7, as the authors' KD_SRRL, which compares means over space of a projected map
  ("statistics"). SimKD's repository projects the pooled vector: stages=("pooled",).

  >>> x = Output(jnp.ones((2, 5)), {"stage3": jnp.ones((2, 4, 4, 3))})
  >>> float(softmax_regression(x, x).total)
  0.0
  """
  what = "softmax_regression"

  def kernel(s: jax.Array, t: jax.Array) -> jax.Array:
    s, t = (jnp.mean(x, axis=(1, 2)) if x.ndim == 4 else x for x in widen(s, t, what=what))
    return hint_mse(s, t, where=where)

  feature = over_stages(kernel, student, teacher, stages, weights=stage_weights, what=what)
  ours, theirs = (
    logits_of(x, what=what, role=role) for x, role in ((student, "student"), (teacher, "teacher"))
  )
  return Terms(feature=feature, logit=logit_weight * logit_mse(ours, theirs, where=where))
