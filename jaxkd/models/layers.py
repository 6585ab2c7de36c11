"""Layers that several architectures use."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.nn.initializers import Initializer, variance_scaling

from jaxkd.errors import ConfigError
from jaxkd.types import Array

# torch's kaiming_normal_(mode="fan_out", nonlinearity="relu").
he_normal = variance_scaling(2.0, "fan_out", "normal")
# What torch gives convolutions and linear layers that nobody initialises.
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
  """A convolution whose output is as large as its input / stride, rounded up.

  With `groups` it is depthwise where these are as many as the input's channels and as `width`.
  """
  # The same padding at every stride, as torch; Flax's "SAME" shifts strided convolutions.
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
  """A linear layer with the initial values of PyTorch's Linear, whose bias knows the fan-in."""
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


def check_images(images: Array, smallest: int) -> None:
  """Raises unless `images` are (B, H, W, C), floating, and at least `smallest` x `smallest`.

  Raises:
    ConfigError: for smaller images.
    ValueError: for images of another rank, or not of a floating dtype.
  """
  shape = jnp.shape(images)
  if len(shape) != 4:
    raise ValueError(f"images must be (B, H, W, C), not {shape}")
  dtype = jnp.result_type(images)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f"images must be normalised and floating point, not {dtype}")
  if min(shape[1:3]) < smallest:
    raise ConfigError(
      f"images of {shape[1]}x{shape[2]} are too small: this model takes {smallest}x{smallest} "
      "and larger"
    )


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


Module = TypeVar("Module", bound=nn.Module)


def separate(module: Module) -> Module:
  """A copy that shares no variables with the original, nor do the modules it holds.

  linen lets modules that hold one and the same module share its variables; a plain `clone` still
  holds it.
  """
  return module.clone(_deep_clone=True, _reset_names=True)
