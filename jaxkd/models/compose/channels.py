"""The first channels of a network's arrays as a network of its own; masks of all other channels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd.types import Array


def first_channels(tree: Any, shapes: Any) -> Any:
  """Return the first entries of every array along all of its axes.

  Args:
    tree: variables of a wide network.
    shapes: those of a network with the same layers and at most as many channels, or their shapes.

  >>> first_channels({"kernel": jnp.arange(6).reshape(2, 3)}, {"kernel": jnp.zeros((1, 2))})
  {'kernel': Array([[0, 1]], dtype=int32)}
  """
  return jax.tree.map(lambda x, y: x[tuple(slice(n) for n in y.shape)], tree, shapes)


def write_first_channels(tree: Any, values: Any) -> Any:
  """Return `tree` with `values` as its first entries, the opposite of `first_channels`."""
  return jax.tree.map(
    lambda x, y: jnp.asarray(x).at[tuple(slice(n) for n in y.shape)].set(y), tree, values
  )


def masked_channels(counts: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
  """Return a context in which a wide network computes what its first channels alone would compute.

  The output of each batch normalisation is 0 from the given channel on. What follows has to map 0
  to 0, as ReLU, ReLU6, a sum and a mean over the image do: the channel then adds exactly 0 to all
  later layers, and gets a gradient of exactly 0. Its statistics are not to be kept.

  Args:
    counts: path of a batch normalisation ("stage1_0/bn1") -> its number of channels, which may be
      traced: one program for all widths.
  """

  def intercept(
    following: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], context: Any
  ) -> Any:
    y = following(*args, **kwargs)
    if not isinstance(context.module, nn.BatchNorm) or context.method_name != "__call__":
      return y
    count = counts["/".join(context.module.path)]
    return jnp.where(jnp.arange(y.shape[-1]) < count, y, jnp.zeros_like(y))

  return nn.intercept_methods(intercept)


def importance(kernel: Array) -> Array:
  """Return the sum of the magnitudes of a kernel (..., in, out) for each of its input channels.

  >>> importance(jnp.array([[1.0, -2.0], [0.5, 0.0]])).tolist()
  [3.0, 0.5]
  """
  return jnp.sum(jnp.abs(kernel), axis=tuple(a for a in range(kernel.ndim) if a != kernel.ndim - 2))


def most_important_first(kernel: Array) -> Array:
  """Return the order of a kernel's input channels by falling `importance`, int32."""
  return jnp.argsort(-importance(kernel), stable=True).astype(jnp.int32)


def reorder(block: Mapping[str, Any], order: Array, inner: Sequence[str], last: str) -> Any:
  """Return the variables of a block with its inner channels in another order.

  Args:
    block: layer -> its arrays.
    order: old number of each new channel.
    inner: layers whose last axis has the inner channels.
    last: the convolution that reads them, on its last axis but one.
  """
  found = dict(block)
  for layer in inner:
    if layer in block:
      found[layer] = jax.tree.map(lambda x: jnp.take(x, order, axis=-1), block[layer])
  if last in block:
    found[last] = jax.tree.map(lambda x: jnp.take(x, order, axis=-2), block[last])
  return found
