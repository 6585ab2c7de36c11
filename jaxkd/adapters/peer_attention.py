"""OKDDip's attention: the weight of every peer in the target of every other, for each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.nn.initializers import variance_scaling

from jaxkd.errors import ConfigError
from jaxkd.losses._numerics import widen

# The kernel of torch's Linear: uniform within 1 / sqrt(inputs) of zero.
_linear_uniform = variance_scaling(1 / 3, "fan_in", "uniform")


class PeerAttention(nn.Module):
  """A[b, i, j] = softmax over j of query(x_i) . key(x_j), for features x of m peers.

  Both are linear layers without a bias that all peers share; i = j is one of the terms, and the
  products are not scaled.

  Attributes:
    width: outputs of the layers; 0 is an eighth of the features' channels, at least 1.
    dtype: dtype of the linear layers; parameters stay float32.

  Parameters: "query" {"kernel"} and "key" {"kernel"}, (D, width). Initial values are torch's.

  Source: Chen et al., "Online Knowledge Distillation with Diverse Peers", AAAI 2020, as the
  authors' code.
  """

  width: int = 0
  dtype: Any = None

  @nn.compact
  def __call__(self, features: Sequence[jax.Array], train: bool) -> jax.Array:
    """Map m features (B, ..., D), of which the mean over inner axes is taken, to (B, m, m).

    Raises:
      ConfigError: for features of different shapes, or without channels.
    """
    shapes = {x.shape for x in features}
    if len(shapes) != 1 or len(next(iter(shapes))) < 2:
      found = ", ".join(str(x.shape) for x in features)
      raise ConfigError(f"PeerAttention: features {found}: expected (B, ..., D), all of one shape")
    x = jnp.stack(list(features), axis=1)
    x = x.mean(tuple(range(2, x.ndim - 1)))
    width = self.width or max(1, x.shape[-1] // 8)

    def layer(name: str) -> jax.Array:
      dense = nn.Dense(
        width, use_bias=False, dtype=self.dtype, kernel_init=_linear_uniform, name=name
      )
      return dense(x)

    query, key = widen(layer("query"), layer("key"))
    products = jnp.einsum("bid,bjd->bij", query, key, precision=lax.Precision.HIGHEST)
    return nn.softmax(products)
