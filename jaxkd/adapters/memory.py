"""Arrays that an adapter keeps from step to step, such as a bank of earlier examples' features."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax.numpy as jnp
from jax import Array, lax

_axis_name: contextvars.ContextVar[str | None] = contextvars.ContextVar("axis_name", default=None)


@contextlib.contextmanager
def examples_over(axis_name: str | None) -> Iterator[None]:
  """Make `axis_name` the axis of `all_examples` inside the block.

  `jaxkd.methods.offline` applies adapters in such a block, with `Context.axis_name`. The axis that
  a module has for its batch statistics may be None in a step over several devices.
  """
  token = _axis_name.set(axis_name)
  try:
    yield
  finally:
    _axis_name.reset(token)


def all_examples(x: Array) -> Array:
  """The examples of all devices, in the order of the global batch.

  An adapter that writes its collection `jaxkd.types.MEMORY` from these keeps the same bits on every
  device; such a collection is never averaged over devices.

  Args:
    x: (B, ...) of this device.

  Returns:
    (devices * B, ...); x itself while variables are created, and in a step of one device without a
    named axis.
  """
  axis_name = _axis_name.get()
  return x if axis_name is None else lax.all_gather(x, axis_name, tiled=True)


def write_rows(bank: Array, rows: Array, values: Array, where: Array | None = None) -> Array:
  """The bank with each example's value in its row, the same on every device.

  A batch over the end of an epoch may hold an example twice. The last of them is written: a plain
  `bank.at[rows].set(values)` leaves open which one it is.

  Args:
    bank: (N, ...).
    rows: (B,) integers; those outside of 0 .. N - 1 are not written.
    values: (B, ...).
    where: (B,), nonzero for what is written (`Batch.mask`); None writes all.

  >>> write_rows(jnp.zeros(3), jnp.array([2, 0, 2]), jnp.array([5.0, 6.0, 7.0]))
  Array([6., 0., 7.], dtype=float32)
  """
  outside = jnp.int32(len(bank))
  rows = jnp.where(rows < 0, outside, rows)
  if where is not None:
    rows = jnp.where(where != 0, rows, outside)
  again = jnp.triu(rows[:, None] == rows[None, :], k=1).any(axis=1)
  return bank.at[jnp.where(again, outside, rows)].set(values.astype(bank.dtype), mode="drop")
