"""Layers that several architectures use, with the padding and the initial values of PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.nn.initializers import Initializer, variance_scaling

from jaxkd.errors import ConfigError
from jaxkd.types import Array

Strides = tuple[int, ...]
Padding = tuple[tuple[int, int], ...]

# PyTorch's kaiming_normal_(mode="fan_out", nonlinearity="relu").
he_normal = variance_scaling(2.0, "fan_out", "normal")
# PyTorch's default for the kernels of convolutions and linear layers.
torch_uniform = variance_scaling(1 / 3, "fan_in", "uniform")


def convolution(
  width: int,
  size: int,
  dtype: Any,
  stride: int = 1,
  name: str | None = None,
  *,
  groups: int = 1,
  bias: bool = False,
  kernel_init: Initializer = he_normal,
) -> nn.Conv:
  """A convolution whose output size is the input size / stride, rounded up.

  It is depthwise if `groups` equals the number of input channels and `width`.
  """
  # Equal padding on both sides at every stride, as in PyTorch; Flax's "SAME" shifts strided
  # convolutions.
  padding = ((size // 2, size // 2),) * 2
  return nn.Conv(
    width,
    (size, size),
    (stride, stride),
    padding,
    feature_group_count=groups,
    use_bias=bias,
    dtype=dtype,
    kernel_init=kernel_init,
    conv_general_dilated=grouped_convolution if groups > 1 else None,
    name=name,
  )


def batch_norm(axis_name: str | None, dtype: Any, name: str | None = None) -> nn.BatchNorm:
  """Batch normalisation with PyTorch's momentum and epsilon."""
  return nn.BatchNorm(momentum=0.9, epsilon=1e-5, axis_name=axis_name, dtype=dtype, name=name)


def linear(width: int, fan_in: int, dtype: Any, name: str | None = None) -> nn.Dense:
  """A linear layer with the initial values of PyTorch's Linear; its bias depends on `fan_in`."""
  bound = fan_in**-0.5

  def bias_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return nn.Dense(width, dtype=dtype, kernel_init=torch_uniform, bias_init=bias_init, name=name)


def channel_shuffle(x: Array, groups: int) -> Array:
  """Channel j of group i becomes channel i of group j: (..., C) with C a multiple of `groups`.

  >>> channel_shuffle(jnp.arange(6), 2).tolist()
  [0, 3, 1, 4, 2, 5]
  """
  grouped = x.reshape(*x.shape[:-1], groups, -1)
  return jnp.swapaxes(grouped, -1, -2).reshape(x.shape)


def run_blocks(blocks: Sequence[nn.Module], x: Array, train: bool) -> Array:
  """Run blocks one after the other, with a ReLU after each but the last."""
  *earlier, last = blocks
  for block in earlier:
    x = nn.relu(block(x, train))
  return last(x, train)


def check_images(images: Array, smallest: int, *, tables: bool = False) -> None:
  """Check that `images` are (B, H, W, C), floating point, of at least `smallest` x `smallest`.

  With `tables`, vectors (B, D) of floating point are accepted, too.

  Raises:
    ConfigError: for smaller images.
    ValueError: for images of another rank, or not of a floating dtype.
  """
  if not hasattr(images, "shape"):
    raise ValueError(f"images must be one array (B, H, W, C), not a {type(images).__name__}")
  shape = jnp.shape(images)
  tables = tables and len(shape) == 2
  if len(shape) != 4 and not tables:
    raise ValueError(f"images must be (B, H, W, C), not {shape}")
  dtype = jnp.result_type(images)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f"images must be normalised and floating point, not {dtype}")
  if not tables and min(shape[1:3]) < smallest:
    raise ConfigError(
      f"images of {shape[1]}x{shape[2]} are too small: this model takes {smallest}x{smallest} "
      "and larger"
    )


def grouped_convolution(
  x: Array, kernel: Array, strides: Strides, padding: Any, **options: Any
) -> Array:
  """`lax.conv_general_dilated` with groups, for `flax.linen.Conv.conv_general_dilated`.

  On a CPU a depthwise convolution is computed as a sum of shifted products: XLA's own CPU code for
  it is many times slower (a training step of MobileNetV2 takes a quarter of the time, compilation
  1.5 times as long). Other devices, and groups of several channels, use XLA's convolution.

  Args:
    x: (B, H, W, C).
    kernel: (k, k, C / groups, width).
    strides: of rows and columns.
    padding: zeros before and after the rows and the columns.
    **options: further arguments from Flax, of which `precision` is used; there is no dilation.
  """
  padding = tuple((before, after) for before, after in padding)
  return _grouped_convolution(x, kernel, tuple(strides), padding, options.get("precision"))


# Under jit: outside it, every call would build both branches of `platform_dependent` again.
@partial(jax.jit, static_argnums=(2, 3, 4))
def _grouped_convolution(
  x: Array, kernel: Array, strides: Strides, padding: Padding, precision: Any
) -> Array:
  def convolve(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(
      x,
      kernel,
      strides,
      padding,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=x.shape[-1] // kernel.shape[2],
      precision=precision,
    )

  def sum_shifted(x: Array, kernel: Array) -> Array:
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
    return convolve(x, kernel)
  return lax.platform_dependent(x, kernel, cpu=sum_shifted, default=convolve)
