"""Masking of padding: in the inputs of a learner, and in its batch statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxkd.errors import ConfigError
from jaxkd.losses._counting import counted_examples, keep, over_positions
from jaxkd.types import Array


def without_padding(inputs: Any, mask: Any) -> Any:
  """Replace examples of which nothing counts by zeros, whatever values they have (NaN too).

  Args:
    inputs: a pytree of arrays (B, ...).
    mask: (B, ...), nonzero for what counts; None counts all.
  """
  if mask is None:
    return inputs

  def cleared(x: Any) -> Array:
    x = jnp.asarray(x)
    return keep(counted_examples("batch.mask", mask, x), x)[0]

  return jax.tree.map(cleared, inputs)


# Methods that run a network. One whose class has `takes_mask` gets the mask as an argument.
_FORWARD = ("__call__", "encode", "resume")


def counted_statistics(mask: Any) -> contextlib.AbstractContextManager[Any]:
  """Return a context in which training-mode `nn.BatchNorm` excludes padding from its statistics.

  Mean and variance are over the rows that count, of all devices if the layer has an axis name. A
  batch of which nothing counts does not change the running averages. A module whose class has the
  attribute `takes_mask` gets the mask as the argument `mask`.

  Args:
    mask: (B,), or more of the first axes of the normalised array; None changes nothing.
  """
  if mask is None:
    return contextlib.nullcontext()
  counted = jnp.asarray(mask) != 0

  def intercept(
    following: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], context: Any
  ) -> Any:
    module = context.module
    if hasattr(type(module), "takes_mask") and context.method_name in _FORWARD:
      return following(*args, **{"mask": counted, **kwargs})
    foreign = hasattr(type(module), "foreign_statistics") and module.foreign_statistics
    if foreign and kwargs.get("train"):
      raise ConfigError(
        f"batch.mask: {type(module).__name__} has batch statistics of its own library, from which "
        "padding cannot be left out: expected a mask of None, or a model without them"
      )
    if not isinstance(module, nn.BatchNorm) or context.method_name != "__call__":
      return following(*args, **kwargs)
    running = kwargs.get("use_running_average", args[1] if len(args) > 1 else None)
    running = module.use_running_average if running is None else running
    if running or module.is_initializing():
      return following(*args, **kwargs)
    return _normalized(module, following, args[0], counted)

  return nn.intercept_methods(intercept)


def _normalized(
  module: nn.BatchNorm, following: Callable[..., Any], x: Array, counted: Array
) -> Array:
  if module.axis != -1 or module.axis_index_groups is not None:
    raise ConfigError(
      f"batch.mask: {module.name} normalises axis {module.axis}, in groups of devices "
      f"{module.axis_index_groups}; padding can be left out with axis=-1 and without groups"
    )
  rows = _rows(module, x, counted)
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  axes = tuple(range(x.ndim - 1))

  def total(values: Array) -> Array:
    found = jnp.sum(jnp.where(rows[..., None], values, 0), axes, dtype=dtype)
    return found if module.axis_name is None else lax.psum(found, module.axis_name)

  ones = jnp.ones((*x.shape[:-1], 1), dtype)
  number = total(ones)
  some = number > 0
  size = jnp.maximum(number, 1)
  mean = total(x) / size
  variance = total(jnp.square(x.astype(dtype) - mean.reshape((1,) * len(axes) + (-1,)))) / size
  now = {"mean": mean, "var": variance}
  before: dict[str, Array] = {name: module.get_variable("batch_stats", name) for name in now}
  # The layer normalises by these statistics as if they were its running averages.
  for name, value in now.items():
    module.put_variable("batch_stats", name, value)
  normalized = _with_running_average(module, following, x)
  for name, old in before.items():
    moved = module.momentum * old + (1 - module.momentum) * now[name]
    module.put_variable("batch_stats", name, jnp.where(some, moved, old).astype(old.dtype))
  return normalized


def _with_running_average(module: nn.BatchNorm, following: Callable[..., Any], x: Array) -> Array:
  if module.use_running_average is None:
    return following(x, use_running_average=True)
  # What the constructor got cannot be given in the call as well.
  before = module.use_running_average
  object.__setattr__(module, "use_running_average", True)
  try:
    return following(x)
  finally:
    object.__setattr__(module, "use_running_average", before)


def _rows(module: nn.BatchNorm, x: Array, counted: Any) -> Array:
  """Return a flag for each row (...) of x (..., C): True if it counts."""
  leading = x.shape[:-1]
  if leading[0] != counted.shape[0]:
    raise ConfigError(
      f"batch.mask {counted.shape}: {module.name} normalises {x.shape}, whose first axis is not "
      "the examples'"
    )
  if counted.shape != leading[: counted.ndim]:
    # A mask of another resolution only determines the examples.
    counted = counted_examples("batch.mask", counted, x)
  return over_positions(f"batch.mask {counted.shape} does not belong", counted, x)
