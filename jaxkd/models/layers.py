"""The layers of PyTorch's networks for small images, with its padding and initial values."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer, variance_scaling

from jaxkd.errors import ConfigError
from jaxkd.models.grouped import grouped_convolution
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
