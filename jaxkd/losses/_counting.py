"""Masks of the examples that count: padding is excluded from values, statistics and gradients.

A kernel first replaces examples that do not count by zeros (`keep`), because 0 * NaN is NaN in
values and gradients, and then excludes them from its reductions (`mean`, `number`).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError


def counted_examples(what: str, where: ArrayLike | None, x: jax.Array) -> jax.Array | None:
  """Return a mask (B,), True for the examples of x (B, ...) that count; None if all count.

  Args:
    what: the function's name, for the error.
    where: mask (B,), nonzero where an example counts; or (B, ...), where an example counts if any
      of its positions does. None: all count.
    x: features (B, ...).

  Raises:
    ConfigError: with both shapes, if the first axis of `where` is not that of x.

  >>> counted_examples("hint_mse", [[1, 0], [0, 0]], jnp.ones((2, 8, 8, 3)))
  Array([ True, False], dtype=bool)
  """
  counted = _truth(what, where)
  if counted is None:
    return None
  if not counted.ndim or not x.ndim or counted.shape[0] != x.shape[0]:
    raise ConfigError(
      f"{what}: where {counted.shape} does not belong to features {x.shape}: its first axis must "
      "be the examples'"
    )
  return jnp.any(counted, axis=tuple(range(1, counted.ndim)))


def counted_positions(what: str, where: ArrayLike | None, logits: jax.Array) -> jax.Array | None:
  """Return `where` as bool with all leading axes of logits (..., C); None if all count.

  Args:
    what: the function's name, for the error.
    where: nonzero where a position counts, with the first or all of the logits' leading axes:
      (B,) or (B, T) for (B, T, C). None: all count.
    logits: (..., C).

  Raises:
    ConfigError: with both shapes, if they do not match.

  >>> counted_positions("soft_target_kl", [1, 0], jnp.ones((2, 3, 5))).sum(1)
  Array([3, 0], dtype=int32)
  """
  counted = _truth(what, where)
  if counted is None:
    return None
  return over_positions(f"{what}: where {counted.shape} does not belong", counted, logits)


def counted_tokens(what: str, where: ArrayLike | None, x: jax.Array) -> jax.Array | None:
  """Return `where` (B, T) as bool if it says which tokens of features x (B, T, D) count, else None.

  Args:
    what: the function's name, for the error.
    where: mask (B, T); None for any other number of axes.
    x: features; None for any other number of axes than three.

  Raises:
    ConfigError: with both shapes, if the features have another number of tokens.

  >>> counted_tokens("hint_mse", [[1, 0]], jnp.ones((1, 2, 3)))
  Array([[ True, False]], dtype=bool)
  """
  counted = _truth(what, where)
  if counted is None or counted.ndim != 2 or x.ndim != 3:
    return None
  if counted.shape != x.shape[:2]:
    raise ConfigError(
      f"{what}: where {counted.shape} is a mask of {counted.shape[1]} tokens and features "
      f"{x.shape} have {x.shape[1]}: expected as many, features (B, D) or (B, H, W, C), or a mask "
      "(B,) of the examples"
    )
  return counted


def over_positions(problem: str, given: jax.Array, logits: jax.Array) -> jax.Array:
  """Broadcast an array with the first of the logits' leading axes over all of them.

  Raises:
    ConfigError: with `problem` and the logits' shape, if `given` has other axes.
  """
  leading = logits.shape[:-1]
  if given.shape != leading[: given.ndim] or (leading and not given.ndim):
    allowed = " or ".join(str(leading[: i + 1]) for i in range(len(leading))) or "()"
    raise ConfigError(f"{problem} to logits {logits.shape}: the shape must be {allowed}")
  return jnp.broadcast_to(_expanded(given, len(leading)), leading)


def keep(counted: jax.Array | None, *arrays: jax.Array) -> tuple[jax.Array, ...]:
  """Replace the values that do not count by zeros, NaN included.

  >>> keep(jnp.array([True, False]), jnp.array([[1.0], [jnp.nan]]))
  (Array([[1.], [0.]], dtype=float32),)
  """
  if counted is None:
    return arrays
  return tuple(jnp.where(_expanded(counted, x.ndim), x, jnp.zeros((), x.dtype)) for x in arrays)


def number(counted: jax.Array | None, size: int) -> int | jax.Array:
  """Return the number that count, at least 1, as a divisor of sums; `size` if all count."""
  return size if counted is None else jnp.maximum(jnp.sum(counted, dtype=jnp.int32), 1)


def mean(values: jax.Array, counted: jax.Array | None) -> jax.Array:
  """Mean over every element that counts; 0 if none does.

  Args:
    values: (B, ...), finite where they count.
    counted: mask with the first axes of `values`, or None.

  >>> mean(jnp.array([[1.0, 2.0], [jnp.nan, 0.0]]), jnp.array([True, False]))
  Array(1.5, dtype=float32)
  """
  if counted is None:
    return jnp.mean(values)
  (values,) = keep(counted, values)
  each = math.prod(values.shape[counted.ndim :])
  return jnp.sum(values) / (each * jnp.asarray(number(counted, counted.size), values.dtype))


def mean_of_tokens(values: jax.Array, tokens: jax.Array, counted: jax.Array | None) -> jax.Array:
  """Mean over the examples that count of the mean over each one's tokens that count.

  Args:
    values: (B, T, D), finite where they count.
    tokens: mask (B, T), from `counted_tokens`.
    counted: mask (B,), from `counted_examples`.

  >>> mean_of_tokens(jnp.array([[[1.0], [5.0]], [[3.0], [5.0]]]), jnp.array([[1, 0], [1, 1]]), None)
  Array(2.5, dtype=float32)
  """
  (values,) = keep(tokens != 0, values)
  number_of_tokens = jnp.maximum(jnp.sum(tokens, axis=1), 1)
  return mean(jnp.mean(values, axis=2).sum(1) / number_of_tokens, counted)


def share(counted: jax.Array | None, axis_name: str | None) -> ArrayLike:
  """Factor of a device's mean that makes `lax.pmean` the mean over all devices.

  It is the number that count on this device, divided by the mean of that number over devices; 1
  if all count or there is no device axis; 0 if nothing counts on any device.
  """
  if counted is None or axis_name is None:
    return 1.0
  own = jnp.sum(counted).astype(jnp.float32)
  total = lax.pmean(own, axis_name)
  return own / jnp.where(total > 0, total, 1.0)


def _truth(what: str, where: ArrayLike | None) -> jax.Array | None:
  """Return `where` as bool, or None."""
  if where is None:
    return None
  if isinstance(where, str):
    raise ConfigError(
      f"{what}: where is {where!r}: it must be a mask of the examples that count; the arrays of "
      f"an Output to compare are chosen by `arrays={where!r}`"
    )
  return jnp.asarray(where) != 0


def _expanded(x: jax.Array, ndim: int) -> jax.Array:
  """Append axes of length 1 up to `ndim` axes in all."""
  return x.reshape(x.shape + (1,) * (ndim - x.ndim))
