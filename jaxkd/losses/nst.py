"""Neuron selectivity transfer: maximum mean discrepancy (MMD) between sets of channel maps.

Every channel is one sample: its map over the image, scaled to unit norm. Student and teacher are
two sets of samples, compared by the squared MMD of each example.
"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._checks import (
  Arrays,
  Stages,
  check_maps,
  check_positive,
  is_number,
  mask_and_arrays,
  over_stages,
)
from jaxkd.losses._counting import counted_examples, keep, mean, number
from jaxkd.losses._numerics import (
  channel_gram,
  channel_products,
  channel_squared_distances,
  l2_norm,
  mean_outer_product,
  widen,
)
from jaxkd.losses._resize import match_sizes
from jaxkd.types import Output, Terms

Kernel = Literal["polynomial", "gaussian", "linear"]

# Lower bound of the variance: where all maps agree up to rounding, a smaller one would amplify the
# rounding errors.
_SMALLEST_VARIANCE = 1e-4
# Lower bound of the norm that a channel's map is divided by.
_SMALLEST_NORM = 1e-12


def polynomial_mmd(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  degree: int = 2,
  offset: float = 0.0,
  teacher_term: bool = True,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Squared MMD of the channels' unit maps under the kernel k(x, y) = (x.y + offset)^degree.

  Per example mean_{i,i'} k(s_i, s_i') - 2 mean_{i,j} k(s_i, t_j) + mean_{j,j'} k(t_j, t_j'), where
  s_i and t_j are the channels' maps divided by max(L2 norm, 1e-12); then the mean over the batch.
  Memory is O(B (C^2 + H W C)): pairs are compared through their matrix of inner products.

  Args:
    student: (B, H, W, C).
    teacher: (B, H', W', C'), constant. The larger map is average-pooled to the other's size
      (`match_sizes`); channels may differ.
    degree: integer > 0.
    offset: added to the inner product, >= 0.
    teacher_term: add the teacher-teacher mean, a constant that changes no gradient. Without it the
      value is not 0 at equality and may be negative.
    where: mask (B,), nonzero where an example counts; the others may hold any values. None: all
      count. With more axes, (B, T), an example counts if any position does.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts. It does not depend on the order of
    the channels or their positive scales. An all-zero map stays zero, with gradient 0.

  Raises:
    ConfigError: if either is not (B, H, W, C), the batch sizes differ, `where` does not fit
      them, or an option is out of range.

  Source: Huang & Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
  2017, with degree 2 and offset 0, as RepDistiller, mdistiller and the Zoo. The authors' MXNet
  code leaves the constant out: `teacher_term=False`.

  >>> x = jnp.eye(4).reshape(1, 2, 2, 4)
  >>> polynomial_mmd(x[..., :1], x[..., 1:2])
  Array(2., dtype=float32)
  """
  if not isinstance(degree, numbers.Integral) or isinstance(degree, bool) or degree < 1:
    raise ConfigError(f"degree is {degree!r}: it must be an integer greater than 0")
  if is_number(offset) and not 0 <= offset < float("inf"):
    raise ConfigError(f"offset is {offset}: it must be a finite number, 0 or greater")
  s, t, counted = _comparable("polynomial_mmd", student, teacher, where)
  positions, channels = s.shape[1] * s.shape[2], s.shape[3] + t.shape[3]
  if degree == 2 and is_number(offset) and offset == 0 and 2 * positions < channels:
    # mean (x.y)^2 is the inner product of the sets' mean outer products x x'. These matrices are
    # smaller, and no large means are subtracted.
    means = mean_outer_product(_unit(s)), mean_outer_product(_unit(t))
    return _distance_of_means(*means, teacher_term, counted)
  # The norms are on the diagonals, so the matrices are divided instead of the maps.
  within, across, constant = channel_gram(s), channel_products(s, t), channel_gram(t)
  s_scale, t_scale = _scales(within), _scales(constant)

  def mean_kernel(products: jax.Array, x_scale: jax.Array, y_scale: jax.Array) -> jax.Array:
    cosines = products * x_scale[:, :, None] * y_scale[:, None, :]
    return mean(lax.integer_pow(cosines + offset, int(degree)), counted)

  value = mean_kernel(within, s_scale, s_scale) - 2.0 * mean_kernel(across, s_scale, t_scale)
  return value + mean_kernel(constant, t_scale, t_scale) if teacher_term else value


def gaussian_mmd(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  variance: ArrayLike | None = None,
  teacher_term: bool = True,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Squared MMD of the channels' unit maps under k(x, y) = exp(-|x - y|^2 / (2 variance)).

  The three means of `polynomial_mmd` with this kernel, in as little memory.

  Args:
    student: (B, H, W, C).
    teacher: (B, H', W', C'), constant; see `polynomial_mmd`.
    variance: the kernel's sigma^2 > 0. None takes, for each example, the mean of |x - y|^2 over
      all pairs of channels of both networks together, at least 1e-4. It is recomputed in every
      step and takes no gradient, so a wider kernel does not lower the loss.
    teacher_term: add the constant teacher-teacher mean.
    where: mask (B,) of the examples that count; see `polynomial_mmd`.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts. It does not depend on the order of
    the channels or their positive scales. An all-zero map is the origin, with gradient 0.

  Raises:
    ConfigError: as `polynomial_mmd`, or if variance is a number that is not positive.

  Source: Huang & Wang, "Like What You Like", 2017, with sigma^2 the mean squared distance of the
  pairs. The paper does not define which pairs; here the three means share one kernel, else the
  MMD could be negative. The code this library is checked against has no Gaussian kernel.

  >>> x = jnp.eye(4).reshape(1, 2, 2, 4)
  >>> gaussian_mmd(x[..., :1], x[..., 1:2], variance=1.0)
  Array(1.2642411, dtype=float32)
  """
  if variance is not None:
    check_positive("variance", variance)
  s, t, counted = _unit_maps("gaussian_mmd", student, teacher, where)
  # Distances do not depend on the origin; one near the maps keeps rounding errors small.
  origin = jnp.mean(t, axis=3, keepdims=True)
  s, t = s - origin, t - origin
  within, across, constant = (channel_squared_distances(x, y) for x, y in ((s, s), (s, t), (t, t)))
  if variance is None:
    pairs = (s.shape[3] + t.shape[3]) ** 2
    total = sum(jnp.sum(d, (1, 2), keepdims=True) for d in (within, across, across, constant))
    variance = jnp.maximum(lax.stop_gradient(total) / pairs, _SMALLEST_VARIANCE)

  def mean_kernel(distances: jax.Array) -> jax.Array:
    return mean(jnp.exp(distances / (-2.0 * variance)), counted)

  value = mean_kernel(within) - 2.0 * mean_kernel(across)
  return value + mean_kernel(constant) if teacher_term else value


def linear_mmd(
  student: ArrayLike,
  teacher: ArrayLike,
  *,
  teacher_term: bool = True,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Squared MMD of the channels' unit maps under k(x, y) = x.y.

  Equal to the mean over the batch of |mean_i s_i - mean_j t_j|^2, at a cost of O(B H W C).

  Args:
    student: (B, H, W, C).
    teacher: (B, H', W', C'), constant; see `polynomial_mmd`.
    teacher_term: add the constant |mean_j t_j|^2.
    where: mask (B,) of the examples that count; see `polynomial_mmd`.

  Returns:
    The loss, a scalar, float32 or wider; 0 if nothing counts. It does not depend on the order of
    the channels or their positive scales. An all-zero map stays zero, with gradient 0.

  Raises:
    ConfigError: if either is not (B, H, W, C), the batch sizes differ, or `where` does not fit
      them.

  Source: Huang & Wang, "Like What You Like", 2017, which relates it to attention transfer: the
  mean over channels of the unit maps is an attention map.

  >>> x = jnp.eye(4).reshape(1, 2, 2, 4)
  >>> linear_mmd(x[..., :1], x[..., 1:3])
  Array(1.5, dtype=float32)
  """
  s, t, counted = _unit_maps("linear_mmd", student, teacher, where)
  return _distance_of_means(jnp.mean(s, axis=3), jnp.mean(t, axis=3), teacher_term, counted)


def neuron_selectivity_transfer(
  student: Output,
  teacher: Output,
  *,
  stages: Stages = ("stage3",),
  stage_weights: Sequence[ArrayLike] | None = None,
  kernel: Kernel = "polynomial",
  degree: int = 2,
  offset: float = 0.0,
  variance: ArrayLike | None = None,
  teacher_term: bool = True,
  arrays: Arrays = "features",
  where: ArrayLike | str | None = None,
) -> Terms:
  """Neuron selectivity transfer: match the sets of channel maps of student and teacher.

  The sum over stages of `polynomial_mmd`, `gaussian_mmd` or `linear_mmd`.

  Args:
    student: Output with maps (B, H, W, C) at `stages`.
    teacher: Output likewise, constant. Channels and sizes may differ.
    stages: names, or (student's, teacher's) pairs of names.
    stage_weights: one weight per stage; None weights all by 1.
    kernel: "polynomial", "gaussian" or "linear".
    degree: integer > 0, of the polynomial kernel.
    offset: >= 0, of the polynomial kernel.
    variance: of the Gaussian kernel; None takes it from the data, as a constant.
    teacher_term: add the constant teacher-teacher mean.
    arrays: "features", or "preactivations", the same stages before their last activation.
    where: mask (B,) of the examples that count; see `polynomial_mmd`. A string is
      read as `arrays`, whose earlier name was `where`.

  Returns:
    Terms(feature=...), float32 or wider. Weights: 50 (authors, RepDistiller), 10 (Zoo).

  Raises:
    ConfigError: for arrays in place of Outputs, an unknown stage or option, or shapes that do not
      fit; it names the stage and both shapes.

  Source: Huang & Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
  2017. The defaults are the Zoo's. The authors' MXNet code takes the last block before its ReLU
  and drops the constant: `arrays="preactivations", teacher_term=False`. RepDistiller and mdistiller
  sum over every stage: `stages=("stage1", "stage2", "stage3")`.

  >>> maps = Output(features={"stage3": jnp.ones((2, 4, 4, 3))})
  >>> float(neuron_selectivity_transfer(maps, maps, kernel="linear").total)
  0.0
  """
  where, arrays = mask_and_arrays(where, arrays)
  kernels: dict[str, tuple[Callable[..., jax.Array], dict[str, Any]]] = {
    "polynomial": (polynomial_mmd, {"degree": degree, "offset": offset}),
    "gaussian": (gaussian_mmd, {"variance": variance}),
    "linear": (linear_mmd, {}),
  }
  if kernel not in kernels:
    raise unknown_name("kernel", kernel, kernels)
  mmd, options = kernels[kernel]
  value = over_stages(
    functools.partial(mmd, **options, teacher_term=teacher_term, where=where),
    student,
    teacher,
    stages,
    weights=stage_weights,
    arrays=arrays,
    what="neuron_selectivity_transfer",
  )
  return Terms(feature=value)


def _unit_maps(
  what: str, student: ArrayLike, teacher: ArrayLike, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Return `_comparable` with each channel's map divided by its norm over the image."""
  s, t, counted = _comparable(what, student, teacher, where)
  return _unit(s), _unit(t), counted


def _comparable(
  what: str, student: ArrayLike, teacher: ArrayLike, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Return both sides' maps at one size and the mask; the teacher takes no gradient."""
  s, t = widen(student, lax.stop_gradient(teacher), what=what)
  check_maps(what, s, t)
  counted = counted_examples(what, where, s)
  s, t = match_sizes(*keep(counted, s, t))
  return s, t, counted


def _unit(maps: jax.Array) -> jax.Array:
  """Divide each channel's map by its norm; all-zero maps stay zero, with gradient 0."""
  norm = l2_norm(maps, (1, 2), keepdims=True)
  # All-zero maps are common after a ReLU. Under a kernel with a slope at 0 their gradient would
  # otherwise be 1e12 times that of the others.
  return jnp.where(norm > 0, maps / jnp.maximum(norm, _SMALLEST_NORM), 0.0)


def _scales(gram: jax.Array) -> jax.Array:
  """Return 1 / norm of every channel, (B, C), bounded as in `_unit`; 0 for an all-zero map."""
  # A mask: the derivative of `diagonal` would be a scatter.
  squares = jnp.sum(jnp.where(jnp.eye(gram.shape[1], dtype=bool), gram, 0), axis=2)
  positive = squares > 0
  norm = jnp.sqrt(jnp.where(positive, squares, 1.0))
  return jnp.where(positive, 1.0 / jnp.maximum(norm, _SMALLEST_NORM), 0.0)


def _distance_of_means(
  student: jax.Array, teacher: jax.Array, teacher_term: bool, counted: jax.Array | None
) -> jax.Array:
  """Mean over B of |student - teacher|^2, minus |teacher|^2 unless `teacher_term`.

  Examples that do not count must be zeros on both sides.
  """
  count = number(counted, student.shape[0])
  value = jnp.sum(jnp.square(student - teacher)) / count
  return value if teacher_term else value - jnp.sum(jnp.square(teacher)) / count
