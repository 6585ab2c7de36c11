"""Widths, norms, inner products and probabilities that are accurate in float32."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses._checks import check_arrays, is_number


def widen(*arrays: ArrayLike, what: str = "") -> tuple[jax.Array, ...]:
  """The arrays in one dtype, at least float32: bfloat16 is widened, float64 stays.

  Args:
    *arrays: of any shapes.
    what: the kernel's name, for the error.

  Raises:
    ConfigError: for an Output, or None; it names the loss to call, or the array to give.

  >>> [a.dtype.name for a in widen(jnp.ones(2, jnp.bfloat16), jnp.ones(2))]
  ['float32', 'float32']
  """
  check_arrays(what, *arrays)
  found = [jnp.asarray(a) for a in arrays]
  dtype = functools.reduce(jnp.promote_types, (a.dtype for a in found), jnp.dtype("float32"))
  return tuple(a.astype(dtype) for a in found)


Axes = int | tuple[int, ...]

# What is no more than so many machine epsilons of the values is rounding, and counts as 0.
ROUNDINGS = 16


def as_rows(x: jax.Array) -> jax.Array:
  """Every example (B, ...) as a row that is cut in pieces: (B, pieces, n), to reduce over (1, 2).

  XLA's loop over a long last axis on CPU takes two to three times as long as one over pieces of 64.
  """
  size = math.prod(x.shape[1:])
  piece = math.gcd(size, 64)
  return x.reshape(x.shape[0], -1, piece if piece >= 16 else size)


def l2_norm(x: jax.Array, axis: Axes, keepdims: bool = False) -> jax.Array:
  """sqrt(sum x^2) over `axis`; the gradient at a zero vector is 0, as torch.norm has it."""
  squares = jnp.sum(x * x, axis=axis, keepdims=keepdims)
  positive = squares > 0
  # The inner where keeps sqrt's infinite slope at 0 out of the backward pass.
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)


def l2_normalize(
  x: jax.Array, axis: Axes, *, eps: float = 1e-12, eps_added: bool = False
) -> jax.Array:
  """X / max(|x|, eps), or x / (|x| + eps) if `eps_added`. Zero vectors stay zero."""
  norm = l2_norm(x, axis, keepdims=True)
  return x / (norm + eps if eps_added else jnp.maximum(norm, eps))


def power_of_two(largest: jax.Array) -> jax.Array:
  """The power of two below a magnitude, by which values divide without rounding; constant.

  It is 1 for 0 and for what is not finite.

  >>> power_of_two(jnp.array([3.0, 0.0, 1e-18]))
  Array([2.0000000e+00, 1.0000000e+00, 8.6736174e-19], dtype=float32)
  """
  largest = lax.stop_gradient(largest)
  kind = jnp.finfo(largest.dtype)
  integer = jnp.dtype(f"int{kind.bits}")
  # Without its mantissa a number is a power of two.
  bits = lax.bitcast_convert_type(largest, integer) & jnp.array(-(1 << kind.nmant), integer)
  power = jnp.maximum(lax.bitcast_convert_type(bits, largest.dtype), kind.tiny)
  return jnp.where((largest > 0) & jnp.isfinite(largest), power, 1.0)


def l2_distance(x: jax.Array, y: jax.Array, axis: Axes) -> jax.Array:
  """|x - y|_2 over `axis`; exactly 0, with gradient 0, where x and y agree up to rounding.

  A norm has a kink at 0 and a gradient of full size beside it. Compilers round two equal networks
  differently, and what is left of their difference would be divided by its own norm. A distance
  of at most 16 machine epsilons of |y| counts as 0.

  >>> x = jnp.array([3.0, 4.0])
  >>> l2_distance(x * (1 + 1e-7), x, 0), l2_distance(0 * x, x, 0)
  (Array(0., dtype=float32), Array(5., dtype=float32))
  """
  return beyond_rounding(l2_norm(x - y, axis), l2_norm(y, axis))


def beyond_rounding(distance: jax.Array, norm: jax.Array) -> jax.Array:
  """`distance`, or 0 with gradient 0 where it is rounding next to `norm`, that of either side.

  The sides of so small a distance have the same norm, so that one of them is enough.
  """
  rounding = ROUNDINGS * float(jnp.finfo(distance.dtype).eps) * lax.stop_gradient(norm)
  return jnp.where(distance > rounding, distance, 0.0)


def difference(x: jax.Array, y: jax.Array, norm: jax.Array | None = None) -> jax.Array:
  """X - y; exactly 0, with gradient 0, in every element that is no more than rounding.

  For |x - y|, whose kink is at 0. Rounding is 32 machine epsilons of the elements or, given the
  `norm` of y (B, ...) over all axes but the first, (B, 1, ...), of their root mean square.
  """
  gap = x - y
  size = jnp.maximum(jnp.abs(x), jnp.abs(y))
  if norm is not None:
    size = jnp.maximum(size, lax.stop_gradient(norm) / math.sqrt(max(1, math.prod(y.shape[1:]))))
  return jnp.where(jnp.abs(gap) > 2 * ROUNDINGS * jnp.finfo(gap.dtype).eps * size, gap, 0)


# XLA's CPU multiplies longer and narrow matrices at half the speed of several of this length.
_ROWS = 256
_NARROW = 128


def channel_products(x: jax.Array, y: jax.Array) -> jax.Array:
  """(B, C, C'): of every channel of x (B, H, W, C) with every channel of y (B, H, W, C')."""
  batch, *size, channels = x.shape
  widest = max(channels, y.shape[3])
  positions = size[0] * size[1]
  parts = positions // _ROWS if positions % _ROWS == 0 and widest <= _NARROW else 1
  # As matrices, not maps: XLA then also writes the gradients where they belong, without copies.
  x, y = (z.reshape(batch * parts, positions // parts, z.shape[3]) for z in (x, y))
  products = jnp.einsum("bpi,bpj->bij", x, y, precision=lax.Precision.HIGHEST)
  if parts == 1:
    return products
  return jnp.sum(products.reshape(batch, parts, channels, -1), axis=1)


@jax.custom_jvp
def channel_gram(x: jax.Array) -> jax.Array:
  """(B, C, C): of every channel of x (B, H, W, C) with every channel of x."""
  return channel_products(x, x)


@channel_gram.defjvp
def _channel_gram_jvp(primals, tangents):
  # One product, forwards and backwards, where `channel_products(x, x)` takes two.
  half = channel_products(primals[0], tangents[0])
  return channel_gram(*primals), half + jnp.swapaxes(half, 1, 2)


def squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
  """(B, C, C'): between every channel of x (B, H, W, C) and every channel of y (B, H, W, C')."""
  of_x, of_y = (jnp.sum(z * z, axis=(1, 2)) for z in (x, y))
  return of_x[:, :, None] + of_y[:, None, :] - 2.0 * channel_products(x, y)


def mean_outer_product(maps: jax.Array) -> jax.Array:
  """(B, HW, HW): the mean over channels of x x', for the channels x of maps (B, H, W, C)."""
  flat = maps.reshape(maps.shape[0], -1, maps.shape[3])
  outer = jnp.einsum("bpc,bqc->bpq", flat, flat, precision=lax.Precision.HIGHEST)
  return outer / maps.shape[3]


@jax.custom_jvp
def relative_entropy(log_p: jax.Array, log_target: jax.Array) -> jax.Array:
  """sum_c q * (log q - log p) - q + p, (B,), for log p and log q (B, C).

  It is the Kullback-Leibler divergence KL(q || p) where p and q sum to 1. It is never negative,
  and exactly 0 where p and q are the same, as is its gradient with respect to either.

  A logarithm of -inf is a class that is impossible: 0 log 0 = 0 on either side. The value is inf
  where p is 0 and q is not; the gradient is finite there, too.
  """
  *_, terms = _parts(log_p, log_target)
  return jnp.sum(terms, axis=-1)


@relative_entropy.defjvp
def _relative_entropy_jvp(primals, tangents):
  target, excess, terms = _parts(*primals)
  # p - q, rounded as p and q are: where they differ by less, there is nothing to learn.
  slope = (target + excess) - target
  # Nothing moves what is infinite.
  slope, steep = (jnp.where(terms == jnp.inf, 0.0, x) for x in (slope, terms))
  moved = slope * (tangents[0] - tangents[1]) + steep * tangents[1]
  return jnp.sum(terms, axis=-1), jnp.sum(moved, axis=-1)


def _parts(log_p: jax.Array, log_target: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Of every class q, p - q, and q * (log q - log p) - q + p."""
  target = jnp.exp(log_target)
  # With p - q added every term is q * (e^d - 1 - d) >= 0, which does not cancel when a high
  # temperature makes d small. Where d is large, e^d may overflow, and p is taken as it is: so it
  # is where q is 0, whatever d is.
  d = jnp.where(log_target == -jnp.inf, 1.0, log_p - log_target)
  excess = jnp.where(d < 1.0, target * jnp.expm1(jnp.minimum(d, 1.0)), jnp.exp(log_p) - target)
  # A q that is rounded to 0 is not 0, as its logarithm shows: 0 * -inf would be no number.
  terms = jnp.where(d == -jnp.inf, jnp.inf, excess - target * d)
  return target, excess, terms


def entropy(log_p: jax.Array) -> jax.Array:
  """-sum_c p * log p, (B,), for log p (B, C); a class whose log p is -inf adds 0."""
  log_p = jnp.where(log_p == -jnp.inf, 0.0, log_p)
  return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def softened(logits: jax.Array, temperature: ArrayLike = 1.0) -> jax.Array:
  """Logits / T. A logit of -inf is an impossible class, and gives T no gradient of 0 * inf."""
  if is_number(temperature):
    return logits if temperature == 1 else logits / temperature
  impossible = logits == -jnp.inf
  return jnp.where(impossible, -jnp.inf, jnp.where(impossible, 0.0, logits) / temperature)


def log_probabilities(logits: jax.Array, temperature: ArrayLike = 1.0) -> jax.Array:
  """Log softmax(logits / T), of the logits' shape; -inf for a logit of -inf.

  Such a logit's gradient is that of its logarithm alone, so 0 in what leaves the logarithm out.

  >>> log_probabilities(jnp.array([0.0, 0.0, -jnp.inf])).round(4)
  Array([-0.6931, -0.6931,    -inf], dtype=float32)
  """
  return jax.nn.log_softmax(softened(_below_largest(logits), temperature))


@jax.custom_jvp
def _below_largest(logits: jax.Array) -> jax.Array:
  """The logits minus their largest; the largest becomes exactly 0. The derivative is 1.

  A compiler may contract a multiplication that makes the logits, a division by T for one, into the
  difference. What is left of the largest logit is then rounding, of 4 at logits of 1e8, and the
  probabilities do not sum to 1. A softmax does not change with what is subtracted.
  """
  largest = jnp.max(logits, axis=-1, keepdims=True)
  is_largest = (logits >= largest) & (jnp.abs(largest) < jnp.inf)
  return jnp.where(is_largest, 0.0, logits - largest)


@_below_largest.defjvp
def _below_largest_jvp(primals, tangents):
  return _below_largest(*primals), tangents[0]


def mean_log_probabilities(
  logits: Sequence[ArrayLike], weights: Sequence[float] | None = None
) -> jax.Array:
  """The logits of an ensemble: log of the mean of softmax probabilities.

  log sum_k w_k softmax(z_k), the weights scaled to sum to 1. The softmax of the result is the
  mean itself.

  Args:
    logits: K arrays (B, C).
    weights: K numbers, none negative and not all 0; None weighs all alike.

  Returns:
    (B, C), float32 or wider. Finite wherever the logits are; -inf, with gradient 0, for a class
    that every network with a weight calls impossible by a logit of -inf.

  Raises:
    ConfigError: for no logits, logits of different shapes, or weights that will not do.

  >>> z = mean_log_probabilities([jnp.array([[0.0, 0.0]]), jnp.array([[100.0, 0.0]])])
  >>> jax.nn.softmax(z).round(4)
  Array([[0.75, 0.25]], dtype=float32)
  """
  if not len(logits):
    raise ConfigError("mean_log_probabilities: there are no logits to average")
  shapes = {jnp.shape(z) for z in logits}
  if len(shapes) > 1:
    raise ConfigError(f"mean_log_probabilities: logits differ in shape: {sorted(shapes)}")
  shares = mean_weights(weights, len(logits))
  # A weight of 0 leaves a network out, infinitely certain or not.
  each = [
    log_probabilities(z) + math.log(w) for z, w in zip(widen(*logits), shares, strict=True) if w > 0
  ]
  if len(each) == 1:
    return each[0]
  stacked = jnp.stack(each)
  impossible = jnp.max(stacked, axis=0) == -jnp.inf
  # The inner where keeps the logarithm's infinite slope at 0 out of the backward pass.
  total = jax.nn.logsumexp(jnp.where(impossible, 0.0, stacked), axis=0)
  return jnp.where(impossible, -jnp.inf, total)


def mean_weights(weights: Sequence[float] | None, count: int) -> list[float]:
  """The weights of a mean of `count` things, scaled to sum to 1.

  Raises:
    ConfigError: unless there are `count` finite numbers, none negative and not all 0.
  """
  if weights is None:
    return [1 / count] * count
  given = list(weights)
  proper = all(is_number(w) and 0 <= w < math.inf for w in given)
  if len(given) != count or not proper or not sum(given) > 0:
    raise ConfigError(
      f"weights are {given}: they must be {count} finite numbers, none negative and not all 0"
    )
  return [w / sum(given) for w in given]
