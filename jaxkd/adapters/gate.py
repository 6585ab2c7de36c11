"""ONE's gate: the weight of each branch for each image."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import variance_scaling

from jaxkd.errors import ConfigError
from jaxkd.losses._numerics import widen

# The kernel of torch's Linear: uniform within 1 / sqrt(inputs) of zero.
_linear_uniform = variance_scaling(1 / 3, "fan_in", "uniform")


class Gate(nn.Module):
  """Weights of the branches from the shared features, softmax(ReLU(BN(linear(mean)))).

  The mean is over the image. The weights of an image sum to 1; a single branch has weight 1.

  Attributes:
    branches: number of branches.
    axis_name: device axis over which batch statistics are shared; None keeps them per device.
    dtype: dtype of the linear layer and the normalisation; parameters and statistics stay float32.

  Parameters: "linear" {"kernel", "bias"} and "bn" {"scale", "bias"}; statistics: "bn". Initial
  values are torch's.

  Source: Lan et al., "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, as the
  authors' code, extended to any image size (that code pools 16x16 maps).
  """

  branches: int
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, features: jax.Array, train: bool) -> jax.Array:
    """Map (B, H, W, C) or (B, C) to (B, branches), float32 or wider.

    Raises:
      ConfigError: for features of another rank, or if `branches` is less than 1.
    """
    if features.ndim not in (2, 4):
      raise ConfigError(f"Gate: features {features.shape} are neither (B, H, W, C) nor (B, C)")
    if self.branches < 1:
      raise ConfigError(f"Gate: branches is {self.branches}: it must be at least 1")
    x = features if features.ndim == 2 else jnp.mean(features, axis=(1, 2))
    bound = x.shape[-1] ** -0.5

    def bias_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
      return jax.random.uniform(key, shape, dtype, -bound, bound)

    x = nn.Dense(
      self.branches,
      dtype=self.dtype,
      kernel_init=_linear_uniform,
      bias_init=bias_init,
      name="linear",
    )(x)
    x = nn.BatchNorm(
      use_running_average=not train,
      momentum=0.9,
      epsilon=1e-5,
      axis_name=self.axis_name,
      use_fast_variance=False,  # the fast form cancels in float32 where |mean| >> deviation
      dtype=self.dtype,
      name="bn",
    )(x)
    (x,) = widen(nn.relu(x))
    return nn.softmax(x)
