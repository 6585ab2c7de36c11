"""Dtypes, norms, inner products, probabilities and divergences, accurate in float32.

Where a quantity has an infinite slope at 0 (a root, a logarithm), an inner `jnp.where` keeps the
slope out of the backward pass: the gradient there is 0, not NaN.
"""

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

Axes = int | tuple[int, ...]

# Differences of at most this many machine epsilons, relative to the values, count as 0.
ROUNDINGS = 16

# Matrix products on XLA's CPU: rows per product, and the widest matrix that is split so. One
# product of longer narrow matrices takes twice as long.
_ROWS = 256
_NARROW = 128


def widen(*arrays: ArrayLike, what: str = "") -> tuple[jax.Array, ...]:
  """Cast arrays to one dtype, at least float32: bfloat16 is widened, float64 stays.

  Args:
    *arrays: arrays of any shapes.
    what: the kernel's name, for the error.

  Raises:
    ConfigError: for an Output or None, naming the loss to call or the array to give.

  >>> [a.dtype.name for a in widen(jnp.ones(2, jnp.bfloat16), jnp.ones(2))]
  ['float32', 'float32']
  """
  check_arrays(what, *arrays)
  found = [jnp.asarray(a) for a in arrays]
  dtype = functools.reduce(jnp.promote_types, (a.dtype for a in found), jnp.dtype("float32"))
  return tuple(a.astype(dtype) for a in found)


def l2_norm(x: jax.Array, axis: Axes, keepdims: bool = False) -> jax.Array:
  """Euclidean norm sqrt(sum x^2) over `axis`; the gradient at a zero vector is 0, as in torch."""
  squares = jnp.sum(x * x, axis=axis, keepdims=keepdims)
  positive = squares > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)


def l2_normalize(
  x: jax.Array, axis: Axes, *, eps: float = 1e-12, eps_added: bool = False
) -> jax.Array:
  """Return x / max(|x|, eps), or x / (|x| + eps) if `eps_added`. Zero vectors stay zero."""
  norm = l2_norm(x, axis, keepdims=True)
  return x / (norm + eps if eps_added else jnp.maximum(norm, eps))


def l2_distance(x: jax.Array, y: jax.Array, axis: Axes) -> jax.Array:
  """Euclidean distance |x - y| over `axis`; 0 with gradient 0 where both agree up to rounding.

  A norm has a kink at 0, and its gradient beside the kink has norm 1. A compiler may round two
  equal networks differently, so the rounding error would get that gradient. A distance of at most
  16 machine epsilons of |y| counts as 0.

  >>> x = jnp.array([3.0, 4.0])
  >>> l2_distance(x * (1 + 1e-7), x, 0), l2_distance(0 * x, x, 0)
  (Array(0., dtype=float32), Array(5., dtype=float32))
  """
  return beyond_rounding(l2_norm(x - y, axis), l2_norm(y, axis))


def beyond_rounding(distance: jax.Array, norm: jax.Array) -> jax.Array:
  """Return `distance`, or 0 with gradient 0 where it is at most the rounding error of `norm`.

  `norm` is that of either side: at so small a distance both have the same norm.
  """
  rounding = ROUNDINGS * float(jnp.finfo(distance.dtype).eps) * lax.stop_gradient(norm)
  return jnp.where(distance > rounding, distance, 0.0)


def difference(x: jax.Array, y: jax.Array, norm: jax.Array | None = None) -> jax.Array:
  """Return x - y, with 0 and gradient 0 in every element that is at most rounding error.

  Use it in |x - y|, which has a kink at 0. Rounding error is 32 machine epsilons of the elements
  or, if the `norm` (B, 1, ...) of y (B, ...) is given, of their root mean square if larger.
  """
  gap = x - y
  size = jnp.maximum(jnp.abs(x), jnp.abs(y))
  if norm is not None:
    size = jnp.maximum(size, lax.stop_gradient(norm) / math.sqrt(max(1, math.prod(y.shape[1:]))))
  return jnp.where(jnp.abs(gap) > 2 * ROUNDINGS * jnp.finfo(gap.dtype).eps * size, gap, 0)


def power_of_two(largest: jax.Array) -> jax.Array:
  """Return the largest power of two up to a magnitude; dividing by it does not round.

  It is 1 for 0 and for values that are not finite. It takes no gradient.

  >>> power_of_two(jnp.array([3.0, 0.0, 1e-18]))
  Array([2.0000000e+00, 1.0000000e+00, 8.6736174e-19], dtype=float32)
  """
  largest = lax.stop_gradient(largest)
  kind = jnp.finfo(largest.dtype)
  integer = jnp.dtype(f"int{kind.bits}")
  # Clearing the mantissa leaves a power of two.
  bits = lax.bitcast_convert_type(largest, integer) & jnp.array(-(1 << kind.nmant), integer)
  power = jnp.maximum(lax.bitcast_convert_type(bits, largest.dtype), kind.tiny)
  return jnp.where((largest > 0) & jnp.isfinite(largest), power, 1.0)


def as_rows(x: jax.Array) -> jax.Array:
  """Reshape examples (B, ...) to (B, pieces, n), to be reduced over axes (1, 2).

  On CPU, XLA's loop over a long last axis takes two to three times as long as over pieces of 64.
  """
  size = math.prod(x.shape[1:])
  piece = math.gcd(size, 64)
  return x.reshape(x.shape[0], -1, piece if piece >= 16 else size)


def channel_products(x: jax.Array, y: jax.Array) -> jax.Array:
  """Inner products (B, C, C') over space of the channels of x (B, H, W, C) and y (B, H, W, C')."""
  batch, *size, channels = x.shape
  widest = max(channels, y.shape[3])
  positions = size[0] * size[1]
  parts = positions // _ROWS if positions % _ROWS == 0 and widest <= _NARROW else 1
  # Matrices, not maps: XLA then writes the gradients in place, without copies.
  x, y = (z.reshape(batch * parts, positions // parts, z.shape[3]) for z in (x, y))
  products = jnp.einsum("bpi,bpj->bij", x, y, precision=lax.Precision.HIGHEST)
  if parts == 1:
    return products
  return jnp.sum(products.reshape(batch, parts, channels, -1), axis=1)


@jax.custom_jvp
def channel_gram(x: jax.Array) -> jax.Array:
  """Gram matrices (B, C, C) over space of the channels of x (B, H, W, C)."""
  return channel_products(x, x)


def channel_squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
  """Squared distances (B, C, C') between the channels of x (B, H, W, C) and y (B, H, W, C')."""
  of_x, of_y = (jnp.sum(z * z, axis=(1, 2)) for z in (x, y))
  return of_x[:, :, None] + of_y[:, None, :] - 2.0 * channel_products(x, y)


def mean_outer_product(maps: jax.Array) -> jax.Array:
  """Mean over channels of the outer products x x' (B, HW, HW) of the channels of (B, H, W, C)."""
  flat = maps.reshape(maps.shape[0], -1, maps.shape[3])
  outer = jnp.einsum("bpc,bqc->bpq", flat, flat, precision=lax.Precision.HIGHEST)
  return outer / maps.shape[3]


def log_probabilities(logits: jax.Array, temperature: ArrayLike = 1.0) -> jax.Array:
  """Return log softmax(logits / T), of the logits' shape; -inf for a logit of -inf.

  A logit of -inf takes a gradient only from its own logarithm, so 0 if that is not used.

  >>> log_probabilities(jnp.array([0.0, 0.0, -jnp.inf])).round(4)
  Array([-0.6931, -0.6931,    -inf], dtype=float32)
  """
  return jax.nn.log_softmax(softened(below_largest(logits), temperature))


def softened(logits: jax.Array, temperature: ArrayLike = 1.0) -> jax.Array:
  """Return logits / T. A logit of -inf stays -inf and gives T no gradient, not 0 * inf."""
  if is_number(temperature):
    return logits if temperature == 1 else logits / temperature
  impossible = logits == -jnp.inf
  return jnp.where(impossible, -jnp.inf, jnp.where(impossible, 0.0, logits) / temperature)


def mean_log_probabilities(
  logits: Sequence[ArrayLike], weights: Sequence[float] | None = None
) -> jax.Array:
  """Logits of an ensemble: logarithm of the weighted mean of the networks' probabilities.

  log sum_k w_k softmax(z_k), with the weights scaled to sum to 1. The softmax of the result is the
  mean itself.

  Args:
    logits: K arrays (B, C).
    weights: K numbers, none negative and not all 0; None weights all networks equally.

  Returns:
    (B, C), float32 or wider. Finite where the logits are; -inf, with gradient 0, for a class to
    which every network of nonzero weight gives a logit of -inf.

  Raises:
    ConfigError: if there are no logits, their shapes differ, or the weights are not valid.

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
  # A network of weight 0 is left out before log(0) can meet its logits.
  each = [
    log_probabilities(z) + math.log(w) for z, w in zip(widen(*logits), shares, strict=True) if w > 0
  ]
  if len(each) == 1:
    return each[0]
  stacked = jnp.stack(each)
  impossible = jnp.max(stacked, axis=0) == -jnp.inf
  total = jax.nn.logsumexp(jnp.where(impossible, 0.0, stacked), axis=0)
  return jnp.where(impossible, -jnp.inf, total)


def mean_weights(weights: Sequence[float] | None, count: int) -> list[float]:
  """Return `count` weights scaled to sum to 1; None gives equal weights.

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


@jax.custom_jvp
def relative_entropy(log_p: jax.Array, log_target: jax.Array) -> jax.Array:
  """Relative entropy sum_c q * (log q - log p) - q + p, (B,), of log p and log q (B, C).

  It is the Kullback-Leibler divergence KL(q || p) if p and q sum to 1. It is never negative;
  value and both gradients are exactly 0 where p equals q.

  A logarithm of -inf is an impossible class: 0 log 0 = 0 on either side. The value is inf where p
  is 0 and q is not; the gradient is finite there, too.
  """
  *_, terms = _divergence_terms(log_p, log_target)
  return jnp.sum(terms, axis=-1)


def entropy(log_p: jax.Array) -> jax.Array:
  """Entropy -sum_c p * log p, (B,), of log p (B, C); a class whose log p is -inf adds 0."""
  log_p = jnp.where(log_p == -jnp.inf, 0.0, log_p)
  return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


@channel_gram.defjvp
def _channel_gram_jvp(primals, tangents):
  # One product in the backward pass, where `channel_products(x, x)` takes two.
  half = channel_products(primals[0], tangents[0])
  return channel_gram(*primals), half + jnp.swapaxes(half, 1, 2)


@relative_entropy.defjvp
def _relative_entropy_jvp(primals, tangents):
  target, excess, terms = _divergence_terms(*primals)
  # p - q at the precision of q: a smaller difference gives a gradient of 0.
  slope = (target + excess) - target
  # An infinite term has a gradient of 0.
  slope, steep = (jnp.where(terms == jnp.inf, 0.0, x) for x in (slope, terms))
  moved = slope * (tangents[0] - tangents[1]) + steep * tangents[1]
  return jnp.sum(terms, axis=-1), jnp.sum(moved, axis=-1)


def _divergence_terms(
  log_p: jax.Array, log_target: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Return q, p - q, and q * (log q - log p) - q + p for every class."""
  target = jnp.exp(log_target)
  # With p - q added, every term is q * (e^d - 1 - d) >= 0, which does not cancel when a high
  # temperature makes d small. Where d is large, e^d may overflow, so p itself is used; likewise
  # where q is 0.
  d = jnp.where(log_target == -jnp.inf, 1.0, log_p - log_target)
  excess = jnp.where(d < 1.0, target * jnp.expm1(jnp.minimum(d, 1.0)), jnp.exp(log_p) - target)
  # Where p is 0 the term is inf also if q was rounded to 0; 0 * -inf would give NaN.
  terms = jnp.where(d == -jnp.inf, jnp.inf, excess - target * d)
  return target, excess, terms


@jax.custom_jvp
def below_largest(logits: jax.Array) -> jax.Array:
  """Return the logits minus their largest, which becomes exactly 0. The derivative is 1.

  A compiler may contract the multiplication that makes the logits (for one, a division by T) with
  the subtraction. The largest logit minus itself is then a rounding error, up to 4 at logits of
  1e8, and the probabilities do not sum to 1. A softmax does not depend on what is subtracted.
  """
  largest = jnp.max(logits, axis=-1, keepdims=True)
  is_largest = (logits >= largest) & (jnp.abs(largest) < jnp.inf)
  return jnp.where(is_largest, 0.0, logits - largest)


@below_largest.defjvp
def _below_largest_jvp(primals, tangents):
  return below_largest(*primals), tangents[0]
