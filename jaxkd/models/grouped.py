"""Grouped convolution in the form that the device at hand computes fast."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxkd.types import Array

Strides = tuple[int, ...]
Padding = tuple[tuple[int, int], ...]


def grouped_convolution(
  x: Array, kernel: Array, strides: Strides, padding: Any, **options: Any
) -> Array:
  """`lax.conv_general_dilated` with groups, to be `flax.linen.Conv.conv_general_dilated`.

  XLA computes depthwise convolutions on a CPU many times slower than the same sums of shifted
  products, so these are what a CPU gets: a training step of MobileNetV2 takes a quarter of the
  time, and compiles for half as long again. Other devices and other groups get XLA's.

  Args:
    x: (B, H, W, C).
    kernel: (k, k, C / groups, width).
    strides: of rows and columns.
    padding: zeros before and after the rows and the columns.
    **options: what else Flax hands on; there is no dilation.
  """
  padding = tuple((before, after) for before, after in padding)
  return _convolved(x, kernel, tuple(strides), padding, options.get("precision"))


# Compiled as one: a call outside jit would else build both branches each time.
@partial(jax.jit, static_argnums=(2, 3, 4))
def _convolved(
  x: Array, kernel: Array, strides: Strides, padding: Padding, precision: Any
) -> Array:
  def grouped(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(
      x,
      kernel,
      strides,
      padding,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=x.shape[-1] // kernel.shape[2],
      precision=precision,
    )

  def shifted(x: Array, kernel: Array) -> Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0))).astype(wide)
    (rows, columns), (down, right) = kernel.shape[:2], strides
    height = padded.shape[1] - rows + 1
    width = padded.shape[2] - columns + 1
    y = jnp.zeros((), wide)
    for i in range(rows):
      for j in range(columns):
        window = padded[:, i : i + height : down, j : j + width : right]
        y = y + window * kernel[i, j].astype(wide)[None, None]
    return y.astype(x.dtype)

  if kernel.shape[2:] != (1, x.shape[-1]):  # not depthwise
    return grouped(x, kernel)
  return lax.platform_dependent(x, kernel, cpu=shifted, default=grouped)
