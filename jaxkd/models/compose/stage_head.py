"""A head that maps features of any rank to logits, for networks of any architecture."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.losses._counting import counted_tokens, keep
from jaxkd.models.compose.heads import SeparablePair
from jaxkd.models.layers import convolution, linear
from jaxkd.types import Array


class StageHead(nn.Module):
  """A classifier on the features of a stage: maps, tokens or vectors.

  - Maps (B, H, W, C): `halvings` pairs of separable convolutions, each of stride 2, whose channels
    double, the last of `width` channels; without halvings a 1x1 convolution to `width`. Then the
    mean over the map.
  - Tokens (B, T, D): layer normalisation, the mean over the tokens that count, a linear layer to
    `width`, GELU.
  - Vectors (B, D): as they are.

  A linear layer follows.

  Attributes:
    num_classes: number of classes.
    width: channels before the classifier.
    halvings: number of later stages of the network.
    axis_name: device axis over which batch statistics are shared; None keeps them per device.
    dtype: of the computation; parameters and statistics stay float32.

  Parameters: "separable1", ..., or "conv"; "norm" and "hidden" for tokens; "classifier".

  Source: Hao et al., "One-for-All", NeurIPS 2023: the projectors of the authors' code for
  convolutional students. For transformers it merges patches and adds attention blocks, whose
  tokens all count; the form for tokens here is this project's, and takes padding. Initial values
  are those of the other heads, PyTorch's.
  """

  num_classes: int
  width: int
  halvings: int
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, features: Array, train: bool = False, where: Array | None = None) -> Array:
    """Map features to logits (B, num_classes); `where` (B, T) marks the tokens that count."""
    if features.ndim == 4:
      x = self._pooled_map(features, train)
    elif features.ndim == 3:
      x = self._pooled_tokens(features, where)
    elif features.ndim == 2:
      x = features
    else:
      raise ConfigError(f"StageHead: features {features.shape} are no maps, tokens or vectors")
    return linear(self.num_classes, x.shape[-1], self.dtype, "classifier")(x)

  def _pooled_map(self, x: Array, train: bool) -> Array:
    channels = x.shape[-1]
    if not self.halvings:
      x = convolution(self.width, 1, self.dtype, bias=True, name="conv")(x)
    for i in range(1, self.halvings + 1):
      width = self.width if i == self.halvings else channels * 2**i
      pair = SeparablePair(width, self.axis_name, self.dtype, name=f"separable{i}")
      x = pair(x, train)
    return jnp.mean(x, axis=(1, 2))

  def _pooled_tokens(self, x: Array, where: Array | None) -> Array:
    tokens = counted_tokens("StageHead", where, x)
    (x,) = keep(tokens, x)
    x = nn.LayerNorm(dtype=self.dtype, use_fast_variance=False, name="norm")(x)
    if tokens is None:
      x = jnp.mean(x, axis=1)
    else:
      (x,) = keep(tokens, x)
      count = jnp.maximum(jnp.sum(tokens, axis=1, keepdims=True), 1)
      x = jnp.sum(x, axis=1) / count.astype(x.dtype)
    return nn.gelu(linear(self.width, x.shape[-1], self.dtype, "hidden")(x))
