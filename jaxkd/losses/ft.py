"""Factor transfer: distances between normalised factors, the compressed feature maps."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._checks import Stages, check_maps, check_same_shape, is_number, over_stages
from jaxkd.losses._counting import counted_examples, keep, mean, number
from jaxkd.losses._numerics import as_rows, difference, l2_norm, l2_normalize, widen
from jaxkd.losses._resize import match_sizes
from jaxkd.losses.at import attention_map
from jaxkd.losses.fitnets import hint_mse
from jaxkd.types import Output, Terms

_HINT = "a translator (jaxkd.adapters.translator_for) gives the student the factor's channels"


def factor_l1(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  eps: float = 1e-12,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Mean absolute difference of two normalised factors: mean over B*D of |n(f_s) - n(f_t)|.

  n(f) = f / max(|f|_2, eps), over each example's whole factor, flattened to D = H*W*C numbers.

  Args:
    student: factors (B, H, W, C) or (B, D).
    teacher: factors of the same shape, constant.
    eps: lower bound of the norm. A zero factor stays zero, and its gradient is 1/eps times that
      of the normalised one: finite, but about 1e10 with the authors' eps; a larger eps limits it.
    where: mask (B,), nonzero where an example counts; the others may hold any values. None: all
      count. With more axes, (B, T), an example counts if any position does.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts. It does not depend on the scale of
    either side. Differences of at most 32 machine epsilons of the elements or of their root mean
    square count as 0, with gradient 0.

  Raises:
    ConfigError: if the shapes differ, or `where` does not fit them.

  Source: Kim et al., "Paraphrasing Complex Network: Network Compression via Factor Transfer",
  NeurIPS 2018, as the authors' code (also the Zoo, and torchdistill with p=1, which has no eps
  and gives NaN for a zero factor). The paper's formula is `factor_lp`.

  >>> round(float(factor_l1(jnp.array([[3.0, 4.0]]), jnp.array([[1.0, 0.0]]))), 4)
  0.6
  """
  s, t, counted = _rows("factor_l1", student, teacher, where)
  value = _mean_absolute_gap(s, t, l2_norm(t, (1, 2), keepdims=True), eps)
  # Rows that do not count are zeros on both sides, and add nothing.
  return value if counted is None else value * (s.shape[0] / number(counted, s.shape[0]))


def factor_lp(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  order: float = 2,
  eps: float = 1e-12,
  where: ArrayLike | None = None,
) -> jax.Array:
  """p-norm distance of two normalised factors: mean over B of |n(f_s) - n(f_t)|_p.

  Args:
    student: factors (B, H, W, C) or (B, D).
    teacher: factors of the same shape, constant.
    order: p >= 1 of the norm of the difference; n always divides by the Euclidean norm.
    eps: see `factor_l1`.
    where: mask (B,) of the examples that count; see `factor_l1`.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts. Its gradient is 0 where two factors
    agree up to rounding, as in `factor_l1`. Order 1 is D times `factor_l1`.

  Raises:
    ConfigError: if the shapes differ, `where` does not fit them, or order is not a number >= 1.

  Source: Kim et al., NeurIPS 2018, L_FT, as torchdistill for p other than 1.

  >>> round(float(factor_lp(jnp.array([[0.0, 5.0]]), jnp.array([[2.0, 0.0]]))), 4)
  1.4142
  """
  _check_order(order)
  s, t, counted = _rows("factor_lp", student, teacher, where)
  s, t = (l2_normalize(f, (1, 2), eps=eps) for f in (s, t))
  gap = difference(s, t, l2_norm(t, (1, 2), keepdims=True))
  total = jnp.sum(_absolute_power(gap, order), axis=(1, 2))
  positive = total > 0
  # The inner where keeps the root's infinite slope at 0 out of the backward pass.
  root = jnp.where(positive, total, 1.0) ** (1 / order)
  return mean(jnp.where(positive, root, 0.0), counted)


def factor_map_lp(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  power: float = 2,
  order: float = 1,
  eps: float = 1e-12,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Difference of two factors' attention maps: mean over B, H, W of |A_s - A_t|^order.

  A is `attention_map`: the mean over channels of f^power, of Euclidean norm 1 over space.

  Args:
    student: factors (B, H, W, C).
    teacher: factors (B, H', W', C'), constant. The larger map is average-pooled to the other's
      size (`match_sizes`); channels may differ.
    power: exponent > 0 of the factors. Powers that are not integers use |f|.
    order: exponent >= 1 of the difference.
    eps: see `factor_l1`.
    where: mask (B,) of the examples that count; see `factor_l1`.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts. It does not depend on the scale of
    either side.

  Raises:
    ConfigError: if one is not (B, H, W, C), the batch sizes differ, `where` does not fit
      them, or an exponent is out of range.

  Source: RepDistiller's form of factor transfer (p1 is `power`, p2 is `order`). Unlike the authors'
  loss it compares only where in the image the factor is large.

  >>> factors = jnp.arange(8.0).reshape(1, 2, 2, 2)
  >>> float(factor_map_lp(factors, 3.0 * factors))
  0.0
  """
  _check_order(order)
  s, t = widen(student, lax.stop_gradient(teacher), what="factor_map_lp")
  check_maps("factor_map_lp", s, t)
  counted = counted_examples("factor_map_lp", where, s)
  s, t = match_sizes(*keep(counted, s, t))
  s, t = (attention_map(f, power=power, eps=eps) for f in (s, t))
  gap = difference(s, t, l2_norm(t, (1, 2), keepdims=True))
  return mean(_absolute_power(gap, order), counted)


def reconstruction_error(
  reconstruction: ArrayLike,
  features: ArrayLike,
  *,
  error: Literal["l1", "mse"] = "l1",
  where: ArrayLike | None = None,
) -> jax.Array:
  """Reconstruction error of an auto-encoder: mean over every element of |r - f| or (r - f)^2.

  Args:
    reconstruction: output of the decoder, of any shape.
    features: the teacher's features of the same shape, constant.
    error: "l1" for |r - f|, "mse" for (r - f)^2.
    where: mask (B,), nonzero where an example counts; the others may hold any values. None: all
      count. With more axes, (B, T), an example counts if any position does.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts.

  Raises:
    ConfigError: if the shapes differ, `where` does not fit them, or error is unknown.

  Source: Kim et al., NeurIPS 2018: "l1" is the authors' code, "mse" RepDistiller's trainer.

  >>> reconstruction_error(jnp.zeros((2, 3)), jnp.full((2, 3), -2.0), error="mse")
  Array(4., dtype=float32)
  """
  if error not in ("l1", "mse"):
    raise unknown_name("error", error, ("l1", "mse"))
  r, f = widen(reconstruction, lax.stop_gradient(features), what="reconstruction_error")
  check_same_shape("reconstruction_error", r, f)
  if error == "mse":
    return hint_mse(r, f, where=where)
  counted = counted_examples("reconstruction_error", where, r)
  r, f = keep(counted, r, f)
  return mean(jnp.abs(difference(r, f)), counted)


def factor_transfer(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("stage3",),
  stage_weights: Sequence[ArrayLike] | None = None,
  normalization: Literal["official", "repdistiller"] = "official",
  order: float = 1,
  power: float = 2,
  eps: float = 1e-12,
  where: ArrayLike | None = None,
) -> Terms:
  """Factor transfer: match the student's translated factors to the teacher's factors.

  The sum over stages of `factor_l1` (normalization="official"; `factor_lp` if the order is not
  1) or of `factor_map_lp` (normalization="repdistiller"). The larger of two factors is first
  average-pooled to the size of the smaller (`match_sizes`).

  Args:
    student: Output whose features at `stages` are factors, (B, H, W, C) or (B, D), as from a
      translator (`jaxkd.adapters.translator_for`).
    teacher: Output likewise, constant, as from the encoder of a trained paraphraser
      (`jaxkd.adapters.paraphraser_for`).
    stages: names, or (student's, teacher's) pairs of names.
    stage_weights: one weight per stage; None weights all by 1.
    normalization: "official" compares whole factors of norm 1, "repdistiller" their attention
      maps, which may differ in channels.
    order: >= 1; the p of the norm ("official"), or the exponent of the difference of maps
      ("repdistiller", its p2).
    power: exponent of the factors in RepDistiller's maps (its p1); "official" ignores it.
    eps: lower bound of the norm that factors are divided by. The gradient of a zero factor is
      finite, but as large as 1/eps.
    where: mask (B,) of the examples that count; see `factor_l1`.

  Returns:
    Terms(feature=...), float32 or wider. The authors' weight is 500 (their beta), RepDistiller's
    and the Zoo's 200.

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage or option, or shapes that do not
      fit; it names the stage and both shapes.

  Source: Kim et al., "Paraphrasing Complex Network: Network Compression via Factor Transfer",
  NeurIPS 2018. The defaults are the authors' code, the Zoo, and torchdistill with p=1;
  torchdistill's other p are `order=p`. RepDistiller: `normalization="repdistiller"`.

  >>> factors = Output(features={"stage3": jnp.ones((2, 4, 4, 3))})
  >>> float(factor_transfer(factors, factors).total)
  0.0
  """
  _check_order(order)
  if normalization not in ("official", "repdistiller"):
    raise unknown_name("normalization", normalization, ("official", "repdistiller"))

  def kernel(s: jax.Array, t: jax.Array) -> jax.Array:
    if normalization == "repdistiller":
      return factor_map_lp(s, t, power=power, order=order, eps=eps, where=where)
    s, t = match_sizes(*widen(s, t))
    if order == 1:
      return factor_l1(s, t, eps=eps, where=where)
    return factor_lp(s, t, order=order, eps=eps, where=where)

  what = "factor_transfer"
  value = over_stages(kernel, student, teacher, stages, weights=stage_weights, what=what)
  return Terms(feature=value)


def _rows(
  what: str, student: ArrayLike, teacher: ArrayLike, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Return both sides' factors, (B, pieces, n), and the mask; the teacher takes no gradient."""
  s, t = widen(student, lax.stop_gradient(teacher), what=what)
  check_same_shape(what, s, t, _HINT)
  counted = counted_examples(what, where, s)
  s, t = keep(counted, s, t)
  return as_rows(s), as_rows(t), counted


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _mean_absolute_gap(s: jax.Array, t: jax.Array, t_norm: jax.Array, eps: float) -> jax.Array:
  """Mean over every element of |s / max(|s|, eps) - t / max(|t|, eps)|; t is constant."""
  bound = jnp.maximum(l2_norm(s, (1, 2), keepdims=True), eps)
  return jnp.mean(jnp.abs(_unit_gap(s, t, bound, jnp.maximum(t_norm, eps), t_norm)))


@_mean_absolute_gap.defjvp
def _mean_absolute_gap_jvp(eps, primals, tangents):
  s, t, t_norm = primals
  norm = l2_norm(s, (1, 2), keepdims=True)
  bound, t_bound = jnp.maximum(norm, eps), jnp.maximum(t_norm, eps)
  gap = _unit_gap(s, t, bound, t_bound, t_norm)
  along = jnp.sum(jnp.sign(gap) * s, (1, 2), keepdims=True) / bound
  # The barrier makes XLA compute the signs twice, which is cheaper than to store and load them.
  s, t, t_norm, bound, t_bound = lax.optimization_barrier((s, t, t_norm, bound, t_bound))
  sideways = jnp.where(norm > eps, along, 0) * (s / bound)
  slope = (jnp.sign(_unit_gap(s, t, bound, t_bound, t_norm)) - sideways) / bound
  return jnp.mean(jnp.abs(gap)), jnp.sum(slope * tangents[0]) / s.size


def _unit_gap(
  s: jax.Array, t: jax.Array, bound: jax.Array, t_bound: jax.Array, t_norm: jax.Array
) -> jax.Array:
  """Return s / bound - t / t_bound, with 0 where they agree up to rounding."""
  return difference(s / bound, t / t_bound, t_norm / t_bound)


def _absolute_power(x: jax.Array, order: float) -> jax.Array:
  """Return |x|^order; an integer order is exact and has slope 0 at 0 above order 1."""
  return jnp.abs(x) ** (int(order) if float(order).is_integer() else order)


def _check_order(order: float) -> None:
  """Raise a ConfigError unless order is a finite number of at least 1."""
  if not is_number(order) or not 1 <= order < float("inf"):
    raise ConfigError(f"order is {order!r}: it must be a finite number, 1 or greater")
