"""Arrays that an adapter keeps from step to step, such as a bank of earlier examples' features."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax


def all_examples(x: Array, device_axis: str | None) -> Array:
  """Gather the examples of all devices, in the order of the global batch.

  An adapter that writes its collection `jaxkd.types.MEMORY` from these keeps the same bits on every
  device; such a collection is never averaged over devices.

  Args:
    x: (B, ...) of this device.
    device_axis: the adapter's field of that name, which `jaxkd.methods.offline` sets to the device
      axis in a training step; None elsewhere.

  Returns:
    (devices * B, ...); x itself without an axis.
  """
  return x if device_axis is None else lax.all_gather(x, device_axis, tiled=True)


def write_rows(bank: Array, rows: Array, values: Array, where: Array | None = None) -> Array:
  """Write each example's value into its row of a bank, in the same way on every device.

  A batch over the end of an epoch may hold an example twice. The last of them is written: a plain
  `bank.at[rows].set(values)` leaves open which one it is.

  Args:
    bank: (N, ...), an array of jax or of numpy, as variables read from a file are.
    rows: (B,) integers; rows outside 0 .. N - 1 are not written.
    values: (B, ...).
    where: (B,), nonzero for the examples that are written (`Batch.mask`); with more axes, (B, T),
      an example is written if any position counts. None writes all.

  >>> write_rows(jnp.zeros(3), jnp.array([2, 0, 2]), jnp.array([5.0, 6.0, 7.0]))
  Array([6., 0., 7.], dtype=float32)
  """
  bank, rows, values = jnp.asarray(bank), jnp.asarray(rows), jnp.asarray(values)
  outside = jnp.int32(len(bank))
  rows = jnp.where(rows < 0, outside, rows)
  if where is not None:
    counts = jnp.any((where != 0).reshape(len(rows), -1), axis=1)
    rows = jnp.where(counts, rows, outside)
  again = jnp.triu(rows[:, None] == rows[None, :], k=1).any(axis=1)
  return bank.at[jnp.where(again, outside, rows)].set(values.astype(bank.dtype), mode="drop")
