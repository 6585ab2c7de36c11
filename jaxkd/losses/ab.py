"""Activation boundaries: which neurons are active, not how strongly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import unknown_name
from jaxkd.losses._checks import (
  Arrays,
  Stages,
  check_positive,
  check_same_shape,
  mask_and_arrays,
  over_stages,
  stage_pairs,
)
from jaxkd.losses._counting import (
  counted_examples,
  counted_tokens,
  keep,
  mean,
  mean_of_tokens,
  number,
)
from jaxkd.losses._numerics import widen
from jaxkd.types import Output, Terms

Reduction = Literal["sum", "batch", "mean"]

_REDUCTIONS: tuple[str, ...] = get_args(Reduction)
_HINT = "an adapter (jaxkd.adapters.Regressor without activation) brings one to the other"


def boundary_margin(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  margin: float = 1.0,
  reduction: Reduction = "sum",
  where: ArrayLike | None = None,
) -> jax.Array:
  """Squared hinge loss that puts each student neuron on the teacher's side of 0.

  max(m - s, 0)^2 where the teacher's neuron is on (t > 0), max(s + m, 0)^2 where it is off
  (t <= 0). Only the signs of the teacher are used.

  Args:
    student: values before the activation, of any shape (B, ...).
    teacher: values of the same shape, constant.
    margin: m > 0, distance from the boundary at which the loss becomes 0.
    reduction: over the elements that count: their "sum", that sum over B ("batch"), or their
      "mean".
    where: mask (B,), nonzero where an example counts; the others may hold any values. None: all
      count. With more axes, (B, T), an example counts if any position does; of values (B, T, D),
      the tokens that do not count are left out.

  Returns:
    The loss, a scalar, float32 or wider. Value and gradient are 0 if every student neuron lies on
    the teacher's side, at least m from 0.

  Raises:
    ConfigError: if the shapes differ, `where` does not fit them, margin is not positive or
      reduction is unknown.

  Source: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by
  Hidden Neurons", AAAI 2019. "sum" is the authors' criterion (their trainer divides by B),
  "batch" torchdistill's, "mean" the Zoo's. It is a surrogate of `boundary_disagreement`.

  >>> boundary_margin(jnp.array([[0.5, -3.0]]), jnp.array([[2.0, -0.1]]))
  Array(0.25, dtype=float32)
  """
  check_positive("margin", margin)
  if reduction not in _REDUCTIONS:
    raise unknown_name("reduction", reduction, _REDUCTIONS)
  s, t, counted, tokens = _sides("boundary_margin", student, teacher, where)
  # From here on the teacher is one bit per neuron.
  on = t > 0
  within = counted if tokens is None else tokens
  if within is not None:
    # A neuron that is on and beyond any margin has loss 0 and gradient 0.
    inside = within.reshape(*within.shape, *(1,) * (s.ndim - within.ndim))
    s, on = jnp.where(inside, s, jnp.inf), on | ~inside
  total = _sum_of_squared_hinges(s, on, margin)
  if reduction == "sum":
    return total
  if reduction == "batch":
    return total / number(counted, s.shape[0])
  axes = 1 if tokens is None else 2
  return total / (math.prod(s.shape[axes:]) * number(within, s.shape[0]))


def boundary_disagreement(
  student: ArrayLike, teacher: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
  """Share of neurons that are on in one network and off in the other.

  mean over every element of |1[s > 0] - 1[t > 0]|. Its gradient is 0 everywhere: it is a metric to
  report; `boundary_margin` is the loss to train with.

  Args:
    student: values before the activation, of any shape.
    teacher: values of the same shape.
    where: mask (B,), nonzero where an example counts; the others may hold any values. None: all
      count. With more axes, (B, T), an example counts if any position does; of values (B, T, D),
      the tokens that do not count are left out.

  Returns:
    A scalar in [0, 1], float32 or wider; 0 if nothing counts.

  Raises:
    ConfigError: if the shapes differ, or `where` does not fit them.

  Source: Heo et al., AAAI 2019, the activation transfer loss, as the share that the authors' code
  reports.

  >>> boundary_disagreement(jnp.array([[0.5, -3.0]]), jnp.array([[2.0, 0.1]]))
  Array(0.5, dtype=float32)
  """
  s, t, counted, tokens = _sides("boundary_disagreement", student, teacher, where)
  differ = ((s > 0) != (t > 0)).astype(s.dtype)
  return mean(differ, counted) if tokens is None else mean_of_tokens(differ, tokens, counted)


def activation_boundaries(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("stage1", "stage2", "stage3"),
  stage_weights: Sequence[ArrayLike] | None = None,
  margin: float = 1.0,
  scale: ArrayLike = 3 / 1000,
  reduction: Reduction = "batch",
  arrays: Arrays = "preactivations",
  where: ArrayLike | str | None = None,
) -> Terms:
  """Activation boundaries: match which neurons are on, at every stage.

  scale * sum over stages of weight * `boundary_margin`.

  Args:
    student: Output with pre-activations of the teacher's shape at `stages`, if necessary through a
      adapter that ends without an activation.
    teacher: Output likewise, constant.
    stages: names, or (student's, teacher's) pairs of names, shallowest first.
    stage_weights: one weight per stage; None gives 1 to the last and half as much to each before
      it, 2^(i - n + 1) for i = 0 .. n - 1.
    margin: see `boundary_margin`.
    scale: factor of the whole loss.
    reduction: within a stage, "sum", "batch" or "mean".
    arrays: which arrays are compared; "features" are those after the activation.
    where: mask (B,) of the examples that count; see `boundary_margin`. A string is
      read as `arrays`, whose earlier name was `where`.

  Returns:
    Terms(feature=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage or option, or shapes that do not
      fit; it names the stage and both shapes.

  Source: Heo et al., AAAI 2019. The defaults are the authors' trainer on CIFAR-10 and
  RepDistiller: a first phase of training with this loss alone. torchdistill: `stage_weights` of
  1, `scale=1`; its sample configurations compare features. The Zoo: `margin=2,
  reduction="mean", scale=1` and `stage_weights` of 1/3.

  >>> maps = Output(preactivations={"stage3": jnp.full((2, 4, 4, 3), 1.5)})
  >>> float(activation_boundaries(maps, maps, stages=["stage3"]).total)
  0.0
  """
  where, arrays = mask_and_arrays(where, arrays)
  if stage_weights is None:
    count = len(stage_pairs(stages))
    stage_weights = [2.0 ** (i - count + 1) for i in range(count)]

  def kernel(s: jax.Array, t: jax.Array) -> jax.Array:
    return boundary_margin(s, t, margin=margin, reduction=reduction, where=where)

  total = over_stages(
    kernel,
    student,
    teacher,
    stages,
    weights=stage_weights,
    arrays=arrays,
    what="activation_boundaries",
  )
  return Terms(feature=scale * total)


@jax.custom_jvp
def _sum_of_squared_hinges(s: jax.Array, on: jax.Array, margin: ArrayLike) -> jax.Array:
  """Sum over every element of max(m - s, 0)^2 where `on` and max(m + s, 0)^2 elsewhere."""
  return jnp.sum(jnp.square(_signed_hinges(s, on, margin)))


@_sum_of_squared_hinges.defjvp
def _sum_of_squared_hinges_jvp(primals, tangents):
  # One array gives value and gradient; differentiating `where` and `maximum` would store four.
  hinges = _signed_hinges(*primals)
  moved = jnp.sum(hinges * tangents[0]) + jnp.sum(jnp.abs(hinges)) * tangents[2]
  return jnp.sum(jnp.square(hinges)), 2.0 * moved


def _signed_hinges(s: jax.Array, on: jax.Array, margin: ArrayLike) -> jax.Array:
  """Signed hinge of each student neuron: positive where its value must decrease."""
  hinges = jnp.maximum(margin - jnp.where(on, s, -s), 0)
  return jnp.where(on, -hinges, hinges)


def _sides(
  what: str, student: ArrayLike, teacher: ArrayLike, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
  """Return both sides and the masks of examples and tokens; the teacher takes no gradient."""
  s, t = widen(student, lax.stop_gradient(teacher), what=what)
  check_same_shape(what, s, t, _HINT)
  counted, tokens = counted_examples(what, where, s), counted_tokens(what, where, s)
  s, t = keep(tokens, *keep(counted, s, t))
  return s, t, counted, tokens
