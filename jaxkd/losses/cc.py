"""Correlation congruence (CC): correlations between the examples of a batch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._checks import (
  Stages,
  check_positive,
  check_same_shape,
  check_samples,
  over_stages,
)
from jaxkd.losses._counting import counted_examples, counted_tokens, keep
from jaxkd.losses._numerics import beyond_rounding, difference, power_of_two, widen
from jaxkd.losses._rkd_distances import AxisName
from jaxkd.losses._units import unit_vectors
from jaxkd.types import Output, Terms

Form = Literal["gaussian", "bilinear", "adjacent"]
Norm = Literal["mse", "frobenius"]

_FORMS: tuple[str, ...] = get_args(Form)
_NORMS: tuple[str, ...] = get_args(Norm)


def kernel_correlation(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  kernel: Literal["gaussian", "bilinear"] = "gaussian",
  gamma: float = 0.4,
  order: int = 2,
  normalize: bool = True,
  norm: Norm = "mse",
  eps: float | None = None,
  axis_name: AxisName | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Mean squared difference of the correlation matrices over the examples of a batch.

  sum_ij (K_ij - K'_ij)^2 / B^2, where K' is the teacher's and K_ij = k(u_i, u_j) of the unit
  vectors u = x / |x|. "gaussian": k(u, v) = sum_{p <= order} exp(-2 gamma) (2 gamma)^p / p! <u,
  v>^p, the first terms of exp(-gamma |u - v|^2). "bilinear": k(u, v) = <u, v>.

  Args:
    student: (B, ...), flattened to one vector per example.
    teacher: (B, ...), constant. Its vectors may have another length.
    kernel: "gaussian" or "bilinear".
    gamma: of the Gaussian kernel.
    order: number of terms of the Gaussian kernel besides the constant.
    normalize: whether u = x / |x|; else u = x.
    norm: "mse", as above; or "frobenius", sqrt(sum_ij (K_ij - K'_ij)^2) / B^2.
    eps: None: a zero vector has correlations as <u, v> = 0 and takes no gradient. A number:
      u = x / max(|x|, eps), by which a zero vector takes the gradient of a division by eps.
    axis_name: mapped axis (or axes) over which the batch is first gathered; see
      `correlation_congruence`.
    where: mask (B,) of the examples that count; others may hold any values. None: all count. With
      more axes, (B, T), an example counts if any position does; of features (B, T, D), the tokens
      that do not count are left out.

  Returns:
    The loss, a scalar, float32 or wider, invariant to rotation and, if `normalize`, to scale.

  Raises:
    ConfigError: if the batch sizes differ, an array has no second axis, `where` does not fit, or
      an option is not valid.

  Source: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, eq. 6 to 9,
  as the Zoo's CC, with gamma 0.4 and order 2. torchdistill's CCKDLoss is `normalize=False,
  norm="frobenius"`; it leaves out the factors exp(-2 gamma) of the constant, which cancels.

  >>> kernel_correlation(jnp.eye(2), jnp.ones((2, 5))).round(4)
  Array(0.1266, dtype=float32)
  """
  what = "kernel_correlation"
  for name, value, known in (("kernel", kernel, _FORMS[:2]), ("norm", norm, _NORMS)):
    if value not in known:
      raise unknown_name(name, value, known)
  check_positive("gamma", gamma)
  if order < 1:
    raise ConfigError(f"order is {order}: expected 1 or more")
  student, teacher = widen(student, lax.stop_gradient(teacher), what=what)
  own, student, teacher = _kept(what, student, teacher, where)
  correlate = functools.partial(_products, normalize=normalize, eps=eps, axis_name=axis_name)
  factors = [1.0]
  if kernel == "gaussian":
    # A constant would cancel: p = 0 is left out.
    factors = [
      math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) for p in range(1, order + 1)
    ]
  ours, theirs = (
    sum(f * products**p for p, f in enumerate(factors, start=1))
    for products in (correlate(student), correlate(teacher))
  )
  gap = jnp.asarray(ours - theirs)
  count = jnp.asarray(gap.shape[1], gap.dtype)
  if own is not None:
    count = jnp.maximum(_sum(own.astype(gap.dtype), axis_name), 1)
  if norm == "mse":
    return _sum(jnp.square(gap), axis_name) / jnp.square(count)
  distance, size = _frobenius(gap, axis_name), _frobenius(jnp.asarray(theirs), axis_name)
  return beyond_rounding(distance, size) / jnp.square(count)


def adjacent_products(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  detached: bool = True,
  axis_name: AxisName | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Products of the differences of adjacent examples: mean over i of sum_d |D_i,d| |D_i+1,d|.

  D = student - teacher, and i goes over the B - 1 examples that have a next one in the batch.

  Args:
    student: embeddings (B, ...), flattened to one vector per example.
    teacher: embeddings of the same shape.
    detached: whether the teacher takes no gradient. In published code a learning layer embeds the
      teacher, too; False lets it learn.
    axis_name: mapped axis (or axes) over which the batch is first gathered; see
      `correlation_congruence`.
    where: mask (B,) of the examples that count; others may hold any values, and those before and
      after them are adjacent. None: all count. With more axes as in `kernel_correlation`.

  Returns:
    The loss, a scalar, float32 or wider; 0 if less than two examples count. It depends on the order
    of the examples.

  Raises:
    ConfigError: if the shapes differ, an array has no second axis, or `where` does not fit.

  Source: RepDistiller's Correlation, which it has from the authors of Peng et al., "Correlation
  Congruence for Knowledge Distillation", ICCV 2019. The paper has no such quantity: its correlation
  is `kernel_correlation`.

  >>> adjacent_products(jnp.array([[1.0], [2.0], [3.0]]), jnp.zeros((3, 1)))
  Array(4., dtype=float32)
  """
  what = "adjacent_products"
  student, teacher = widen(student, teacher, what=what)
  check_same_shape(what, student, teacher, "jaxkd.adapters.Embeddings brings both to one width")
  own, student, teacher = _kept(
    what, student, lax.stop_gradient(teacher) if detached else teacher, where
  )
  gaps = jnp.abs(difference(student, teacher)).reshape(student.shape[0], -1)
  if axis_name is not None:
    # No stop_gradient: the gradient flows through the gathered examples, too.
    gaps = lax.all_gather(gaps, axis_name, tiled=True)
    own = None if own is None else lax.all_gather(own, axis_name, tiled=True)
  if own is None:
    return jnp.sum(gaps[:-1] * gaps[1:]) / max(len(gaps) - 1, 1)
  # Those that count come first, in their order, and those that do not have gaps of 0.
  gaps = gaps[jnp.argsort(~own, stable=True)]
  pairs = jnp.maximum(jnp.sum(own) - 1, 1)
  return jnp.sum(gaps[:-1] * gaps[1:]) / jnp.asarray(pairs, gaps.dtype)


def correlation_congruence(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("pooled",),
  stage_weights: Sequence[ArrayLike] | None = None,
  form: Form = "gaussian",
  gamma: float = 0.4,
  order: int = 2,
  normalize: bool = True,
  norm: Norm = "mse",
  detached: bool = True,
  axis_name: AxisName | None = None,
  where: ArrayLike | None = None,
) -> Terms:
  """Correlation congruence (CC): the sum over stages of one of its published forms.

  Args:
    student: Output with features at `stages`, (B, D) or (B, H, W, C), flattened per example.
    teacher: Output likewise, constant. Sizes and channels may differ, but for "adjacent".
    stages: names, or (student's, teacher's) pairs of names.
    stage_weights: one weight per stage; None weights all by 1.
    form: "gaussian" and "bilinear" are `kernel_correlation`, "adjacent" is `adjacent_products`.
    gamma: of the Gaussian kernel.
    order: of the Gaussian kernel's expansion.
    normalize: whether features are divided by their norm, except in the form "adjacent".
    norm: "mse" or "frobenius", except in the form "adjacent".
    detached: in the form "adjacent": whether the teacher takes no gradient.
    axis_name: mapped axis (or axes) of `pmap`, `shard_map(check_vma=False)` or `vmap`. The examples
      compared are then those of the global batch. Every device gets the loss of the global batch,
      and `lax.pmean` of the gradients is its gradient. None: those of each device alone.
    where: mask (B,) of the examples that count; see the kernels.

  Returns:
    Terms(feature=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage or option, or shapes that do not
      fit; it names the stage and both shapes.

  Source: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019. The default
  is the paper's; the form "adjacent", of embeddings of 128 numbers of both pooled features, is the
  authors' code as RepDistiller has it, and gives its published figures with weight 0.02.

  >>> features = Output(features={"pooled": jnp.eye(3)})
  >>> float(correlation_congruence(features, features).total)
  0.0
  """
  if form not in _FORMS:
    raise unknown_name("form", form, _FORMS)
  kernel: Callable[..., jax.Array]
  if form == "adjacent":
    kernel = functools.partial(adjacent_products, detached=detached)
  else:
    kernel = functools.partial(
      kernel_correlation, kernel=form, gamma=gamma, order=order, normalize=normalize, norm=norm
    )
  kernel = functools.partial(kernel, axis_name=axis_name, where=where)
  what = "correlation_congruence"
  total = over_stages(kernel, student, teacher, stages, weights=stage_weights, what=what)
  return Terms(feature=total)


def _kept(
  what: str, student: jax.Array, teacher: jax.Array, where: ArrayLike | None
) -> tuple[jax.Array | None, jax.Array, jax.Array]:
  """Return the mask of this device's examples, and both sides with zeros for what is masked."""
  check_samples(what, student, teacher)
  own = counted_examples(what, where, student)
  student, teacher = keep(own, student, teacher)
  student, teacher = (keep(counted_tokens(what, where, x), x)[0] for x in (student, teacher))
  return own, student, teacher


def _products(
  x: jax.Array, *, normalize: bool, eps: float | None, axis_name: AxisName | None
) -> jax.Array:
  """Return the inner products (A, B) of this device's examples (A, ...) with all."""
  x = x.reshape(x.shape[0], -1)
  x = unit_vectors(x, 1, eps) if normalize else x
  # No stop_gradient: the student's gradient flows through the gathered examples, too.
  others = x if axis_name is None else lax.all_gather(x, axis_name, tiled=True)
  # HIGHEST: GPUs and TPUs would otherwise round the operands.
  return jnp.matmul(x, others.T, precision=lax.Precision.HIGHEST)


def _sum(x: jax.Array, axis_name: AxisName | None) -> jax.Array:
  total = jnp.sum(x)
  return total if axis_name is None else lax.psum(total, axis_name)


def _frobenius(x: jax.Array, axis_name: AxisName | None) -> jax.Array:
  """Return sqrt(sum x^2) over all devices; its gradient is 0 where x is."""
  largest = jnp.max(jnp.abs(lax.stop_gradient(x)), initial=0.0)
  scale = power_of_two(largest if axis_name is None else lax.pmax(largest, axis_name))
  squares = _sum(jnp.square(x / scale), axis_name)
  positive = squares > 0
  return scale * jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)
