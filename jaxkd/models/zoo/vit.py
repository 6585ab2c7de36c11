"""A plain vision transformer for small images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.nn.initializers import xavier_uniform

from jaxkd.errors import ConfigError
from jaxkd.losses._numerics import widen
from jaxkd.models.layers import linear
from jaxkd.models.staged import StagedModel
from jaxkd.types import Array

STAGES = ("stem", "stage1", "stage2", "stage3", "pooled")
_RATIO = 4  # hidden width of the perceptron / width of a token
_PERIOD = 10_000  # period of the slowest position wave, divided by 2 pi


class VisionTransformer(StagedModel):
  """A vision transformer without class token, for images whose sides are multiples of `patch`.

  A convolution of stride `patch` and fixed sine-cosine positions, sum(depths) pre-norm blocks
  (self-attention, then a perceptron of 4 x `width` with GELU), LayerNorm, the mean over the
  tokens, a linear classifier. No variable depends on the size of the grid, so that one set of
  variables fits images of every size.

  Tokens keep their grid. Features, for images (B, H, W, C):
    stem (B, H/patch, W/patch, width), patches with their positions; stage1, stage2, stage3 of the
    same shape; and pooled (B, width). All have both signs, and there are no preactivations.

  Variables: patch_embedding; stage1_0/attention_norm, attention/query, key, value, out, mlp_norm,
  mlp_in, mlp_out, ...; final_norm; classifier.

  Attributes:
    patch: rows and columns of a patch.
    width: channels of a token, a multiple of 4 (and at least 8) and of `heads`.
    heads: number of self-attention heads.
    depths: number of blocks of stage1, stage2 and stage3.
    num_classes: number of classes.
    axis_name: not used, since there are no batch statistics; here because every model takes it.
    dtype: of the computation, the logits and the features; None takes that of the images.
      Parameters, and the softmax of attention, stay float32.

  Source: Beyer, Zhai and Kolesnikov, "Better plain ViT baselines for ImageNet-1k", 2022. Initial
  values are Flax's for the patches, Xavier's uniform ones with biases of zero in the blocks, and
  PyTorch's in the classifier (zeros in the paper).
  """

  signed_stages: ClassVar[tuple[str, ...]] = STAGES

  patch: int
  width: int
  heads: int
  depths: tuple[int, int, int]
  num_classes: int
  axis_name: str | None = None
  dtype: Any = None

  def setup(self) -> None:
    """Create the layers; their variables are created when they first run."""
    if self.width < 8 or self.width % 4 or self.width % self.heads:
      raise ConfigError(
        f"VisionTransformer: width is {self.width}: it must be at least 8, and a multiple of 4 and "
        f"of the {self.heads} heads"
      )
    patch = (self.patch, self.patch)
    self.patch_embedding = nn.Conv(self.width, patch, patch, "VALID", dtype=self.dtype)
    self.stage1, self.stage2, self.stage3 = (
      [Block(self.heads, self.dtype) for _ in range(depth)] for depth in self.depths
    )
    self.final_norm = _norm(self.dtype)
    self.classifier = linear(self.num_classes, self.width, self.dtype)

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    return dict.fromkeys(STAGES, self.width)

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """The feature of one stage; see StagedModel.

    Raises:
      ConfigError: in "stem", for images whose sides are not multiples of `patch`.
    """
    if stage == "stem":
      return self._embedded(x), {}
    if stage == "pooled":
      return jnp.mean(self.final_norm(x), axis=(1, 2)), {}
    for block in getattr(self, stage):
      x = block(x)
    return x, {}

  def _embedded(self, images: Array) -> Array:
    rows, columns = images.shape[1:3]
    if rows % self.patch or columns % self.patch:
      raise ConfigError(
        f"images of {rows}x{columns} do not divide into patches of {self.patch}x{self.patch}: "
        f"this model takes multiples of {self.patch}"
      )
    x = self.patch_embedding(images)
    return x + jnp.asarray(_positions(*x.shape[1:]), x.dtype)[None]


class Block(nn.Module):
  """x + attention(norm(x)), then x + perceptron(norm(x)).

  Attributes:
    heads: number of self-attention heads.
    dtype: as in VisionTransformer.
  """

  heads: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """(B, H, W, C) -> the same shape."""
    width = x.shape[-1]
    x = x + Attention(self.heads, self.dtype, name="attention")(
      _norm(self.dtype, "attention_norm")(x)
    )
    y = _dense(_RATIO * width, self.dtype, "mlp_in")(_norm(self.dtype, "mlp_norm")(x))
    return x + _dense(width, self.dtype, "mlp_out")(nn.gelu(y))


class Attention(nn.Module):
  """Multi-head self-attention among all tokens of a grid.

  Attributes:
    heads: number of heads; each has an equal part of the channels.
    dtype: as in VisionTransformer.
  """

  heads: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """(B, H, W, C) -> the same shape."""
    batch, rows, columns, width = x.shape
    tokens = x.reshape(batch, rows * columns, width)
    per_head = (batch, rows * columns, self.heads, width // self.heads)
    query, key, value = (
      _dense(width, self.dtype, name)(tokens).reshape(per_head)
      for name in ("query", "key", "value")
    )
    (scores,) = widen(jnp.einsum("bqhd,bkhd->bhqk", query, key))
    shares = nn.softmax(scores * (width // self.heads) ** -0.5).astype(value.dtype)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", shares, value).reshape(tokens.shape)
    return _dense(width, self.dtype, "out")(mixed).reshape(x.shape)


def _positions(rows: int, columns: int, width: int) -> np.ndarray:
  """Sines and cosines of the column, then of the row: (rows, columns, width)."""
  slowness = np.linspace(0, 1, width // 4)
  y, x = (np.arange(size)[:, None] / _PERIOD**slowness for size in (rows, columns))
  shape = (rows, columns, width // 4)
  waves = (np.sin(x)[None], np.cos(x)[None], np.sin(y)[:, None], np.cos(y)[:, None])
  return np.concatenate([np.broadcast_to(wave, shape) for wave in waves], axis=-1)


def _dense(width: int, dtype: Any, name: str) -> nn.Dense:
  return nn.Dense(width, dtype=dtype, kernel_init=xavier_uniform(), name=name)


def _norm(dtype: Any, name: str | None = None) -> nn.LayerNorm:
  # The fast variance cancels in float32 if |mean| >> deviation.
  return nn.LayerNorm(dtype=dtype, use_fast_variance=False, name=name)
