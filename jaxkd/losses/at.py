"""Attention transfer: spatial maps of how active the channels are."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._checks import Stages, check_maps, check_positive, is_number, over_stages
from jaxkd.losses._counting import counted_examples, keep, mean
from jaxkd.losses._numerics import l2_distance, l2_norm, power_of_two, widen
from jaxkd.losses._resize import match_sizes
from jaxkd.types import Output, Terms

Reduce = Literal["mean", "sum", "max"]

_REDUCTIONS: dict[str, Callable[..., jax.Array]] = {
  "mean": jnp.mean,
  "sum": jnp.sum,
  "max": jnp.max,
}

# Up to this power (the default) the norm of a map fits into float32 for activations up to 1e8.
_SAFE_POWER = 2


def attention_map(
  features: ArrayLike,
  *,
  power: float = 2,
  reduce: Reduce = "mean",
  absolute: bool = False,
  eps: float = 1e-12,
  eps_added: bool = False,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Attention map of features: channels reduced to one map of unit norm per example.

  A = q / max(|q|_2, eps) with q[b, h, w] = mean_c x[b, h, w, c]^power, the norm over h and w.

  Args:
    features: (B, H, W, C).
    power: exponent > 0. A larger one gives the strongest activations more weight.
    reduce: reduction over channels, "mean", "sum" or "max". "mean" and "sum" differ through eps
      alone.
    absolute: take |x|^power, which differs for odd powers of negative values. Powers that are not
      integers always use |x|.
    eps: lower bound of the norm, so that an all-zero map gives zeros.
    eps_added: divide by |q|_2 + eps instead.
    where: mask (B,), nonzero where an example counts; the others may hold any values. None: all
      count. With more axes, (B, T), an example counts if any position does.

  Returns:
    (B, H, W), float32 or wider; zeros for examples that do not count.

  Raises:
    ConfigError: if features are not (B, H, W, C), `where` does not fit them, power is not a
      positive number, or reduce is unknown.

  Source: Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017, eq. 1, as the
  authors' code. The paper sums |x|^power (`reduce="sum", absolute=True`). The Zoo does so too,
  with `eps=1e-6, eps_added=True`.

  >>> attention_map(jnp.array([3.0, 4.0]).reshape(1, 1, 2, 1), power=1)
  Array([[[0.6, 0.8]]], dtype=float32)
  """
  (features,) = widen(features, what="attention_map")
  if features.ndim != 4:
    raise ConfigError(f"attention_map: features {features.shape} are not (B, H, W, C)")
  if reduce not in _REDUCTIONS:
    raise unknown_name("reduce", reduce, _REDUCTIONS)
  (features,) = keep(counted_examples("attention_map", where, features), features)
  if not is_number(power) or power <= _SAFE_POWER:
    energy = _REDUCTIONS[reduce](_power(features, power, absolute), axis=-1)
    # The derivative of the norm has terms of size 1 / |q|^2, which underflow in float32 for
    # |q| > 1e19.
    scale = power_of_two(jnp.max(jnp.abs(energy), axis=(1, 2), keepdims=True))
    norm = l2_norm(energy / scale, (1, 2), keepdims=True)
    bound = eps / scale
    return (energy / scale) / (norm + bound if eps_added else jnp.maximum(norm, bound))
  # The map does not depend on the scale of the features if eps is scaled likewise: a high power of
  # values up to 1 does not overflow.
  largest = jnp.max(jnp.abs(features), axis=(1, 2, 3), keepdims=True)
  scale = lax.stop_gradient(jnp.maximum(largest, 1.0))
  energy = _REDUCTIONS[reduce](_power(features / scale, power, absolute), axis=-1)
  scaled_eps = jnp.maximum(eps * scale[..., 0] ** -float(power), jnp.finfo(scale.dtype).tiny)
  norm = l2_norm(energy, (1, 2), keepdims=True)
  return energy / (norm + scaled_eps if eps_added else jnp.maximum(norm, scaled_eps))


def attention_map_mse(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  power: float = 2,
  reduce: Reduce = "mean",
  absolute: bool = False,
  eps: float = 1e-12,
  eps_added: bool = False,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Mean squared difference of two attention maps: mean over B, H, W of (A_s - A_t)^2.

  Args:
    student: (B, H, W, C).
    teacher: (B, H', W', C'), constant. The larger map is average-pooled to the other's size
      (`match_sizes`); channels may differ.
    power: exponent of the activations; see `attention_map` for this and the next four.
    reduce: reduction over channels.
    absolute: take |x|^power.
    eps: lower bound of the norm.
    eps_added: add eps to the norm instead.
    where: (B,), the examples that count.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts. It does not depend on the scale of
    either side.

  Raises:
    ConfigError: as `attention_map`, or if the batch sizes differ.

  Source: Zagoruyko & Komodakis, ICLR 2017, as the authors' code (also RepDistiller, mdistiller
  and torchdistill's "code" mode). The paper's eq. 2 is `attention_map_l2`.

  >>> x = jnp.arange(8.0).reshape(1, 2, 2, 2)
  >>> attention_map_mse(x, 3.0 * x).round(6)
  Array(0., dtype=float32)
  """
  student_map, teacher_map, counted = _maps(
    "attention_map_mse", student, teacher, where, power, reduce, absolute, eps, eps_added
  )
  return mean(jnp.square(student_map - teacher_map), counted)


def attention_map_l2(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  power: float = 2,
  reduce: Reduce = "mean",
  absolute: bool = False,
  eps: float = 1e-12,
  eps_added: bool = False,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Euclidean distance of two attention maps: mean over B of |A_s - A_t|_2, not squared.

  Args:
    student: (B, H, W, C).
    teacher: (B, H', W', C'), constant. The larger map is average-pooled to the other's size
      (`match_sizes`); channels may differ.
    power: exponent of the activations; see `attention_map` for this and the next four.
    reduce: reduction over channels.
    absolute: take |x|^power.
    eps: lower bound of the norm.
    eps_added: add eps to the norm instead.
    where: (B,), the examples that count.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts. A norm has a kink where the maps
    agree: its gradient is 0 there and has norm 1 beside it. Maps that agree up to rounding, 16
    machine epsilons of their norm, count as equal.

  Raises:
    ConfigError: as `attention_map`, or if the batch sizes differ.

  Source: Zagoruyko & Komodakis, ICLR 2017, eq. 2, as torchdistill's "paper" mode, which also has
  `reduce="sum"`. The paper sums over the batch and has a factor 1/2.
  """
  student_map, teacher_map, counted = _maps(
    "attention_map_l2", student, teacher, where, power, reduce, absolute, eps, eps_added
  )
  return mean(l2_distance(student_map, teacher_map, (1, 2)), counted)


def attention_transfer(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("stage1", "stage2", "stage3"),
  stage_weights: Sequence[ArrayLike] | None = None,
  power: float = 2,
  norm: Literal["code", "paper"] = "code",
  reduce: Reduce = "mean",
  absolute: bool = False,
  eps: float = 1e-12,
  eps_added: bool = False,
  where: ArrayLike | None = None,
) -> Terms:
  """Attention transfer: match the attention maps of student and teacher at every stage.

  The sum over stages of `attention_map_mse` (norm="code") or `attention_map_l2` (norm="paper").

  Args:
    student: Output with features (B, H, W, C) at `stages`.
    teacher: Output likewise, constant. Channels and sizes may differ.
    stages: names, or (student's, teacher's) pairs of names.
    stage_weights: one weight per stage; None weights all by 1.
    power: exponent of the activations.
    norm: how two maps are compared: "code" as in the authors' code, "paper" as in their paper.
    reduce: reduction over channels, "mean", "sum" or "max".
    absolute: take |x|^power also where the power is an integer.
    eps: lower bound of the norm that maps are divided by.
    eps_added: add eps to that norm instead.
    where: mask (B,) of the examples that count; see `attention_map`.

  Returns:
    Terms(feature=...), float32 or wider. The authors' weight is 1000 (their beta).

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage or option, or shapes that do not
      fit; it names the stage and both shapes.

  Source: Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017, activation-based.
  The defaults are the authors' code, RepDistiller, mdistiller and torchdistill's "code" mode.
  torchdistill's "paper" mode: `norm="paper", reduce="sum"`. The Zoo: `absolute=True,
  reduce="sum", eps=1e-6, eps_added=True`, and it averages its three stages.

  >>> maps = Output(features={"stage1": jnp.ones((2, 4, 4, 3))})
  >>> float(attention_transfer(maps, maps, stages=["stage1"]).total)
  0.0
  """
  kernels = {"code": attention_map_mse, "paper": attention_map_l2}
  if norm not in kernels:
    raise unknown_name("norm", norm, kernels)

  def kernel(s: jax.Array, t: jax.Array) -> jax.Array:
    return kernels[norm](
      s,
      t,
      power=power,
      reduce=reduce,
      absolute=absolute,
      eps=eps,
      eps_added=eps_added,
      where=where,
    )

  what = "attention_transfer"
  value = over_stages(kernel, student, teacher, stages, weights=stage_weights, what=what)
  return Terms(feature=value)


def _maps(
  what: str,
  student: ArrayLike,
  teacher: ArrayLike,
  where: ArrayLike | None,
  power: float,
  reduce: Reduce,
  absolute: bool,
  eps: float,
  eps_added: bool,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Return both attention maps at one size, and the mask; the teacher's takes no gradient."""
  student, teacher = widen(student, lax.stop_gradient(teacher), what=what)
  check_maps("attention_map", student, teacher)
  counted = counted_examples(what, where, student)
  student, teacher = match_sizes(*keep(counted, student, teacher))
  return (
    attention_map(
      student, power=power, reduce=reduce, absolute=absolute, eps=eps, eps_added=eps_added
    ),
    attention_map(
      teacher, power=power, reduce=reduce, absolute=absolute, eps=eps, eps_added=eps_added
    ),
    counted,
  )


def _power(x: jax.Array, power: float, absolute: bool) -> jax.Array:
  """Return x^power or |x|^power, with gradient 0 at 0 also for powers below 1."""
  check_positive("power", power)
  if not isinstance(power, numbers.Real):
    raise ConfigError(f"power is {power!r}: it must be a Python number")
  if float(power).is_integer():
    return lax.integer_pow(jnp.abs(x) if absolute else x, int(power))
  magnitude = jnp.abs(x)
  positive = magnitude > 0
  return jnp.where(positive, jnp.where(positive, magnitude, 1.0) ** float(power), 0.0)
