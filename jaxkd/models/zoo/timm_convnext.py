"""ConvNeXt with timm's sizes and layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.models.layers import convolution, linear
from jaxkd.models.staged import StagedModel, TorchNames
from jaxkd.models.torch.names_timm import TIMM_CONVNEXT_NAMES
from jaxkd.types import Array

STAGES = ("stem", "stage1", "stage2", "stage3", "stage4", "pooled")
_EPS = 1e-6
_RATIO = 4  # hidden width of a block's perceptron / channels
_INITIAL = nn.initializers.normal(0.02)
_SCALE = nn.initializers.constant(1e-6)


class TimmConvNeXt(StagedModel):
  """ConvNeXt: blocks of a 7x7 depthwise convolution and a perceptron, for images from 32x32.

  A 4x4 convolution of stride 4 and LayerNorm; four stages, all but the first of which start with
  LayerNorm and a 2x2 convolution of stride 2; the mean over the image, LayerNorm, a linear
  classifier. A block is a 7x7 depthwise convolution, LayerNorm, a perceptron of 4 times the
  channels with exact GELU, a scale per channel, and the shortcut.

  Features, for images (B, H, W, C), sizes rounded down:
    stem (B, H/4, W/4, widths[0]), after its LayerNorm; stage1 of the same shape; stage2
    (B, H/8, W/8, widths[1]); stage3 (B, H/16, W/16, widths[2]); stage4 (B, H/32, W/32, widths[3]);
    pooled (B, widths[3]), after its LayerNorm. All have both signs, and there are no
    preactivations.

  Variables are named after timm's modules: stem.0, .1 -> stem_conv, stem_norm;
  stages.1.downsample.0, .1 -> stage2_norm, stage2_conv; stages.1.blocks.0.conv_dw, norm, mlp.fc1,
  mlp.fc2, gamma -> stage2_0/conv, norm, mlp_in, mlp_out, gamma; head.norm, head.fc -> final_norm,
  classifier.

  Attributes:
    depths: number of blocks of the four stages.
    widths: channels of the four stages.
    num_classes: number of classes.
    conv_mlp: the perceptrons' layers are 1x1 convolutions, as in timm's atto to nano, instead of
      linear layers; the result is the same, the kernels have two axes more.
    axis_name: not used, since there are no batch statistics; here because every model takes it.
    dtype: of the computation, the logits and the features; None takes that of the images.
      Parameters stay float32.

  Raises:
    ConfigError: at construction, unless there are four depths of at least 1 and four widths.

  Source: Liu et al., "A ConvNet for the 2020s", CVPR 2022; atto, femto, pico and nano are timm's
  (convnext.py, with LayerNorm epsilon 1e-6). There is no stochastic depth, which timm leaves at 0.
  Initial values: normal with standard deviation 0.02, scales of 1e-6; the classifier PyTorch's.

  >>> TimmConvNeXt((2, 2, 6, 2), (40, 80, 160, 320), num_classes=10).channels["stage4"]
  320
  """

  smallest: ClassVar[int] = 32  # the stem takes a quarter, three stages halve
  signed_stages: ClassVar[tuple[str, ...]] = STAGES
  torch_names: ClassVar[TorchNames] = TIMM_CONVNEXT_NAMES

  depths: tuple[int, int, int, int]
  widths: tuple[int, int, int, int]
  num_classes: int
  conv_mlp: bool = False
  axis_name: str | None = None
  dtype: Any = None

  def __post_init__(self) -> None:
    """Check the fields at construction."""
    for name in ("depths", "widths"):
      found = getattr(self, name)
      if len(found) != 4 or min(found) < 1:
        raise ConfigError(f"{name}={found!r}: expected 4 numbers of at least 1")
    super().__post_init__()

  def setup(self) -> None:
    """Create the layers; their variables are created when they first run."""
    self.stem_conv = _reduction(self.widths[0], 4, self.dtype)
    self.stem_norm = _norm(self.dtype)
    self.stage2_norm, self.stage3_norm, self.stage4_norm = (_norm(self.dtype) for _ in range(3))
    self.stage2_conv, self.stage3_conv, self.stage4_conv = (
      _reduction(width, 2, self.dtype) for width in self.widths[1:]
    )
    self.stage1, self.stage2, self.stage3, self.stage4 = (
      [ConvNeXtBlock(self.conv_mlp, self.dtype) for _ in range(depth)] for depth in self.depths
    )
    self.final_norm = _norm(self.dtype)
    self.classifier = linear(self.num_classes, self.widths[3], self.dtype)

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    return dict(zip(STAGES, (self.widths[0], *self.widths, self.widths[3]), strict=True))

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """The feature of one stage; see StagedModel."""
    if stage == "stem":
      return self.stem_norm(self.stem_conv(x)), {}
    if stage == "pooled":
      return self.final_norm(jnp.mean(x, axis=(1, 2))), {}
    if stage != "stage1":
      x = getattr(self, f"{stage}_conv")(getattr(self, f"{stage}_norm")(x))
    for block in getattr(self, stage):
      x = block(x)
    return x, {}


class ConvNeXtBlock(nn.Module):
  """x + scale * perceptron(norm(depthwise convolution(x))).

  Attributes:
    conv_mlp: as in TimmConvNeXt.
    dtype: as in TimmConvNeXt.
  """

  conv_mlp: bool
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """(B, H, W, C) -> the same shape."""
    width = x.shape[-1]
    conv = convolution(
      width, 7, self.dtype, name="conv", groups=width, bias=True, kernel_init=_INITIAL
    )
    y = _norm(self.dtype, "norm")(conv(x))
    y = nn.gelu(self._layer(_RATIO * width, "mlp_in")(y), approximate=False)
    y = self._layer(width, "mlp_out")(y)
    scale = self.param("gamma", _SCALE, (width,))
    return x + y * scale.astype(y.dtype)[None, None, None]

  def _layer(self, width: int, name: str) -> nn.Module:
    if self.conv_mlp:
      return convolution(width, 1, self.dtype, name=name, bias=True, kernel_init=_INITIAL)
    return nn.Dense(width, dtype=self.dtype, kernel_init=_INITIAL, name=name)


def _reduction(width: int, size: int, dtype: Any) -> nn.Conv:
  return nn.Conv(width, (size, size), (size, size), "VALID", dtype=dtype, kernel_init=_INITIAL)


def _norm(dtype: Any, name: str | None = None) -> nn.LayerNorm:
  # The fast variance cancels in float32 if |mean| >> deviation.
  return nn.LayerNorm(epsilon=_EPS, dtype=dtype, use_fast_variance=False, name=name)
