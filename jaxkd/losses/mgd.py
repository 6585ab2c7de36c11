"""Masked generative distillation (MGD): the teacher's features from masked student features."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.losses._checks import Stages, check_same_shape, over_stages
from jaxkd.losses._counting import counted_examples, counted_tokens, keep, number
from jaxkd.losses._numerics import widen
from jaxkd.losses._resize import match_sizes
from jaxkd.types import Output, Terms


def squared_error_sum(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  positions: ArrayLike | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Squared difference of two features: the sum over an example, the mean over examples.

  mean_b sum (s - t)^2.

  Args:
    student: features (B, ...), usually the output of an adapter.
    teacher: features of the same shape, constant.
    positions: factor of each position's squares, with the first axes of the features: (B, N) for
      tokens (B, N, D). None: 1.
    where: mask (B,) of the examples that count; the others may hold any values. None: all count.
      With more axes, (B, T), an example counts if any position does; of features (B, T, D), the
      tokens that do not count are left out.

  Returns:
    The loss, a scalar, float32 or wider; 0 at equality, and if nothing counts.

  Raises:
    ConfigError: if the shapes differ, or `where` does not fit them.

  Source: Yang et al., "Masked Generative Distillation", ECCV 2022, eq. 5, as MGDLoss of MGD:
  divided by the batch size alone, so that it grows with the size of a feature.

  >>> squared_error_sum(jnp.ones((2, 4, 4, 3)), jnp.zeros((2, 4, 4, 3)))
  Array(48., dtype=float32)
  """
  student, teacher = widen(student, lax.stop_gradient(teacher), what="squared_error_sum")
  check_same_shape("squared_error_sum", student, teacher, "an adapter brings one to the other")
  counted = counted_examples("squared_error_sum", where, student)
  student, teacher = keep(counted, student, teacher)
  student, teacher = keep(counted_tokens("squared_error_sum", where, student), student, teacher)
  squares = jnp.square(student - teacher)
  if positions is not None:
    (factor,) = keep(counted, lax.stop_gradient(jnp.asarray(positions)).astype(squares.dtype))
    squares = squares * factor.reshape(factor.shape + (1,) * (squares.ndim - factor.ndim))
  return jnp.sum(squares) / number(counted, len(student))


def masked_generative(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("stage3",),
  stage_weights: Sequence[ArrayLike] | None = None,
  where: ArrayLike | None = None,
) -> Terms:
  """Masked generative distillation (MGD): generated features against the teacher's.

  The sum over stages of `squared_error_sum`, on masked and unmasked positions alike. The larger of
  two maps is first average-pooled to the other's size.

  Args:
    student: Output whose features at `stages` are generated from masked features, by
      `jaxkd.adapters.MaskedGenerator`.
    teacher: Output with the same stages, constant.
    stages: names, or (student's, teacher's) pairs of names.
    stage_weights: one weight per stage; None weights all by 1.
    where: mask (B,) of the examples that count; see `squared_error_sum`.

  Returns:
    Terms(feature=...), float32 or wider. Weights: 7e-5 (classification), 2e-5 (detection and
    segmentation).

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage, or shapes that do not fit; it
      names the stage and both shapes.

  Source: Yang et al., "Masked Generative Distillation", ECCV 2022, as MGD, which has the last
  stage for classification and each level for detection, and refuses maps of different sizes.

  >>> maps = Output(features={"stage3": jnp.ones((2, 4, 4, 3))})
  >>> float(masked_generative(maps, maps).total)
  0.0
  """

  def kernel(s: jax.Array, t: jax.Array) -> jax.Array:
    s, t = widen(s, t)
    if s.ndim == t.ndim == 4:
      s, t = match_sizes(s, t)
    return squared_error_sum(s, t, where=where)

  value = over_stages(
    kernel,
    student,
    teacher,
    stages,
    weights=stage_weights,
    what="masked_generative",
  )
  return Terms(feature=value)
