"""State that an adapter keeps between steps, such as a bank of earlier examples' features."""

from __future__ import annotations

from jax import Array, lax


def all_examples(x: Array, axis_name: str | None) -> Array:
  """Return the examples of all devices, in the order of the global batch.

  An adapter that writes its collection `jaxkd.types.MEMORY` from these has bit-identical values on
  every device; that collection is never averaged over devices.

  Args:
    x: (B, ...) of this device.
    axis_name: the device axis, `Context.axis_name`; None outside a mapped step.

  Returns:
    (devices * B, ...).
  """
  return x if axis_name is None else lax.all_gather(x, axis_name, tiled=True)
