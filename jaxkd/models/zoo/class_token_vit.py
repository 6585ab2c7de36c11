"""The vision transformer with a class token, and its distilled form, as published with weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.losses._numerics import widen
from jaxkd.models.layers import linear
from jaxkd.models.staged import StagedModel, TorchNames
from jaxkd.models.torch.names_hf import HF_VIT_NAMES
from jaxkd.models.torch.names_timm import TIMM_VIT_NAMES
from jaxkd.types import Array, Output

_RATIO = 4  # hidden width of the perceptron / width of a token
_MAPS = 4  # maps of patches among the features
_NAMES: Mapping[str, TorchNames] = {"timm": TIMM_VIT_NAMES, "transformers": HF_VIT_NAMES}
_INITIAL = nn.initializers.normal(0.02)


class ClassTokenTransformer(StagedModel):
  """A vision transformer with class token and learned positions, for square images of one size.

  A convolution of stride `patch`; a class token, and in a distilled network a distillation token,
  in front of the patches; learned positions; `depth` pre-norm blocks (self-attention, then a
  perceptron of 4 x `width` with exact GELU); LayerNorm; a linear classifier of the class token.
  With a distillation head, the logits are the mean of the two classifiers' logits, in training,
  too.

  Features, with T tokens (class token, distillation token if there is one, patches row by row):
    embedded (B, T, width), the input of the first block; block1, block2, ... (B, T, width); norm
    (B, T, width), after the last LayerNorm; pooled (B, width), the class token of norm; with a
    distillation head (B, 2 * width), the class token and the distillation token.
  Further features, that the network does not resume from:
    stage1 ... stage4 (B, H/patch, W/patch, width), the patches after each quarter of the blocks,
    for methods that compare maps; with a distillation head cls and dist (B, width), the two tokens,
    and logits_cls and logits_dist (B, num_classes), the logits of the two classifiers.
  All have both signs, and there are no preactivations.

  The positions belong to the size of the images that the variables are made for; images of another
  size are refused. They are not interpolated.

  Variables: embedding/patches, cls_token, dist_token, pos_embed; block_1/attention_norm,
  attention/qkv (or query, key, value), out, mlp_norm, mlp_in, mlp_out, ...; final_norm; classifier;
  distillation_classifier.

  Attributes:
    patch: rows and columns of a patch.
    width: channels of a token, a multiple of `heads`.
    heads: number of self-attention heads.
    depth: number of blocks, a multiple of 4.
    num_classes: number of classes.
    norm_eps: epsilon of the LayerNorms: 1e-6 in timm, 1e-12 in transformers' default config.
    distillation_token: whether there is a distillation token.
    distillation_head: whether it has a classifier of its own; needs the token.
    library: "timm" (one linear layer for queries, keys and values) or "transformers" (three);
      also selects the names of PyTorch's modules.
    axis_name: not used, since there are no batch statistics; here because every model takes it.
    dtype: of the computation, the logits and the features; None takes that of the images.
      Parameters, and the softmax of attention, stay float32.

  Raises:
    ConfigError: at construction, for a width, depth, head or library that does not fit; when
      called, for images that are not square, that do not divide into patches, or of another size
      than the positions.

  Source: Dosovitskiy et al., ICLR 2021; Touvron et al., "Training data-efficient image transformers
  & distillation through attention", ICML 2021; as in timm's vision_transformer.py and deit.py, and
  in transformers' modeling_vit.py and modeling_deit.py. There is no dropout and no stochastic
  depth, which both leave at 0. Initial values are normal with standard deviation 0.02 for linear
  layers, tokens and positions, and PyTorch's for the classifiers.

  >>> ClassTokenTransformer(16, 192, 3, 12, num_classes=10).stages[-4:]
  ('block11', 'block12', 'norm', 'pooled')
  """

  patch: int
  width: int
  heads: int
  depth: int
  num_classes: int
  norm_eps: float = 1e-6
  distillation_token: bool = False
  distillation_head: bool = False
  library: str = "timm"
  axis_name: str | None = None
  dtype: Any = None

  def __post_init__(self) -> None:
    """Check the fields at construction."""
    if self.heads < 1 or self.width < self.heads or self.width % self.heads:
      raise ConfigError(f"width={self.width}: expected a multiple of the {self.heads} heads")
    if self.depth < _MAPS or self.depth % _MAPS:
      raise ConfigError(f"depth={self.depth}: expected a multiple of {_MAPS}, at least {_MAPS}")
    if self.distillation_head and not self.distillation_token:
      raise ConfigError("distillation_head=True: expected distillation_token=True as well")
    if self.library not in _NAMES:
      raise ConfigError(f"library={self.library!r}: expected one of {', '.join(_NAMES)}")
    super().__post_init__()

  def setup(self) -> None:
    """Create the layers; their variables are created when they first run."""
    self.embedding = Embedding(self.patch, self.width, self.prefix, self.dtype)
    self.block = {
      str(i): TokenBlock(self.heads, self.norm_eps, self.library == "timm", self.dtype)
      for i in range(1, self.depth + 1)
    }
    self.final_norm = _norm(self.norm_eps, self.dtype)
    self.classifier = linear(self.num_classes, self.width, self.dtype)
    if self.distillation_head:
      self.distillation_classifier = linear(self.num_classes, self.width, self.dtype)

  @property
  def torch_names(self) -> TorchNames:  # type: ignore[override]
    """Module names of the library's PyTorch code, for `jaxkd.models.from_torch`."""
    return _NAMES[self.library]

  @property
  def prefix(self) -> int:
    """The number of tokens before the patches."""
    return 2 if self.distillation_token else 1

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    pooled = 2 * self.width if self.distillation_head else self.width
    return dict.fromkeys(self.sequences, self.width) | {"pooled": pooled}

  @property
  def sequences(self) -> tuple[str, ...]:
    """The stages whose features are (B, T, C)."""
    return ("embedded", *(f"block{i}" for i in range(1, self.depth + 1)), "norm")

  @property
  def views(self) -> Mapping[str, str]:
    """Further features -> the stage that they are a part of; see StagedModel."""
    maps = {f"stage{k}": f"block{k * self.depth // _MAPS}" for k in range(1, _MAPS + 1)}
    if not self.distillation_head:
      return maps
    heads = {"cls": "pooled", "dist": "pooled", "logits_cls": "logits", "logits_dist": "logits"}
    return maps | heads

  @property
  def signed_stages(self) -> tuple[str, ...]:  # type: ignore[override]
    """All features, since no ReLU ends them."""
    return (*self.stages, *self.views)

  def view(self, name: str, feature: Array) -> Array:
    """The map of the patches, or one of the two tokens of "pooled"; see StagedModel."""
    if name in ("cls", "dist"):
      return jnp.split(feature, 2, axis=-1)[name == "dist"]
    patches = feature[:, self.prefix :]
    side = math.isqrt(patches.shape[1])
    if side * side != patches.shape[1]:
      raise ConfigError(
        f"{feature.shape[1]} tokens: expected {self.prefix} and a square number of patches"
      )
    return patches.reshape(patches.shape[0], side, side, -1)

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """The feature of one stage; see StagedModel.

    Raises:
      ConfigError: in "embedded", for images of a size that does not fit.
    """
    if stage == "embedded":
      return self.embedding(x), {}
    if stage == "norm":
      return self.final_norm(x), {}
    if stage == "pooled":
      tokens = 2 if self.distillation_head else 1
      return x[:, :tokens].reshape(x.shape[0], -1), {}
    return self.block[stage.removeprefix("block")](x), {}

  def _classified(self, output: Output, last: Array) -> Output:
    if not self.distillation_head:
      return super()._classified(output, last)
    cls, dist = jnp.split(last, 2, axis=-1)
    heads = {
      "logits_cls": self.classifier(cls),
      "logits_dist": self.distillation_classifier(dist),
    }
    logits = (heads["logits_cls"] + heads["logits_dist"]) / 2
    return Output(logits, {**output.features, **heads}, output.preactivations)

  def classify(self, pooled: Array) -> Array:
    """The feature "pooled" -> logits (B, classes): with two classifiers, their mean."""
    if not self.distillation_head:
      return self.classifier(pooled)
    cls, dist = jnp.split(pooled, 2, axis=-1)
    return (self.classifier(cls) + self.distillation_classifier(dist)) / 2


class Embedding(nn.Module):
  """Patches of an image with the class and distillation token in front, plus positions.

  Attributes:
    patch: rows and columns of a patch.
    width: channels of a token.
    prefix: 1, or 2 with a distillation token.
    dtype: as in ClassTokenTransformer.
  """

  patch: int
  width: int
  prefix: int
  dtype: Any = None

  @nn.compact
  def __call__(self, images: Array) -> Array:
    """(B, H, W, C) -> (B, prefix + H * W / patch^2, width).

    Raises:
      ConfigError: for images that are not square, do not divide into patches, or have another
        number of patches than the positions.
    """
    batch, rows, columns, _ = images.shape
    if rows != columns or rows % self.patch:
      raise ConfigError(
        f"images of {rows}x{columns}: this model takes square images whose sides are multiples of "
        f"{self.patch}"
      )
    count = self.prefix + (rows // self.patch) ** 2
    self._check_positions(rows, count)
    patch = (self.patch, self.patch)
    conv = nn.Conv(
      self.width, patch, patch, "VALID", dtype=self.dtype, kernel_init=_INITIAL, name="patches"
    )
    x = conv(images).reshape(batch, -1, self.width)
    names = ("cls_token", "dist_token")[: self.prefix]
    tokens = [self.param(name, _INITIAL, (1, 1, self.width)) for name in names]
    positions = self.param("pos_embed", _INITIAL, (1, count, self.width))
    shape = (batch, 1, self.width)
    x = jnp.concatenate([*(jnp.broadcast_to(t, shape).astype(x.dtype) for t in tokens), x], axis=1)
    return x + positions.astype(x.dtype)

  def _check_positions(self, side: int, count: int) -> None:
    if not self.has_variable("params", "pos_embed"):
      return
    found = jnp.shape(self.get_variable("params", "pos_embed"))[1]
    if found != count:
      stored = self.patch * math.isqrt(max(found - self.prefix, 0))
      raise ConfigError(
        f"images of {side}x{side} are {count} tokens, and these weights have positions for "
        f"{found}: expected images of {stored}x{stored}"
      )


class TokenBlock(nn.Module):
  """x + attention(norm(x)), then x + perceptron(norm(x)), on a sequence of tokens.

  Attributes:
    heads: number of self-attention heads.
    norm_eps: epsilon of the LayerNorms.
    joint: whether one linear layer computes queries, keys and values.
    dtype: as in ClassTokenTransformer.
  """

  heads: int
  norm_eps: float
  joint: bool
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """(B, T, C) -> the same shape."""
    width = x.shape[-1]
    attention = TokenAttention(self.heads, self.joint, self.dtype, name="attention")
    x = x + attention(_norm(self.norm_eps, self.dtype, "attention_norm")(x))
    y = _norm(self.norm_eps, self.dtype, "mlp_norm")(x)
    y = nn.gelu(_dense(_RATIO * width, self.dtype, "mlp_in")(y), approximate=False)
    return x + _dense(width, self.dtype, "mlp_out")(y)


class TokenAttention(nn.Module):
  """Multi-head self-attention on a sequence of tokens.

  Attributes:
    heads: number of heads; each has an equal part of the channels.
    joint: whether one linear layer computes queries, keys and values, in this order.
    dtype: as in ClassTokenTransformer.
  """

  heads: int
  joint: bool
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """(B, T, C) -> the same shape."""
    width = x.shape[-1]
    if self.joint:
      parts = jnp.split(_dense(3 * width, self.dtype, "qkv")(x), 3, axis=-1)
    else:
      parts = [_dense(width, self.dtype, name)(x) for name in ("query", "key", "value")]
    per_head = (*x.shape[:2], self.heads, width // self.heads)
    query, key, value = (part.reshape(per_head) for part in parts)
    (scores,) = widen(jnp.einsum("bqhd,bkhd->bhqk", query, key))
    shares = nn.softmax(scores * (width // self.heads) ** -0.5).astype(value.dtype)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", shares, value).reshape(x.shape)
    return _dense(width, self.dtype, "out")(mixed)


def _dense(width: int, dtype: Any, name: str) -> nn.Dense:
  return nn.Dense(width, dtype=dtype, kernel_init=_INITIAL, name=name)


def _norm(eps: float, dtype: Any, name: str | None = None) -> nn.LayerNorm:
  # The fast variance cancels in float32 if |mean| >> deviation.
  return nn.LayerNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)
