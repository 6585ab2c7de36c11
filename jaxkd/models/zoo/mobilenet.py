"""MobileNetV1 for ImageNet and MobileNetV2 for small images."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer

from jaxkd.models.layers import (
  batch_norm,
  convolution,
  he_normal,
  linear,
  run_blocks,
  torch_uniform,
)
from jaxkd.models.staged import RectifiedModel, StagedModel, TorchNames
from jaxkd.types import Array

_STAGES = ("stem", "stage1", "stage2", "stage3", "stage4", "pooled")
_V1_TORCH_NAMES: TorchNames = (
  (r"model\.0\.0", "stem_conv"),
  (r"model\.0\.1", "stem_bn"),
  (r"model\.(\d+)\.0", r"block_\1/depthwise_conv"),
  (r"model\.(\d+)\.1", r"block_\1/depthwise_bn"),
  (r"model\.(\d+)\.3", r"block_\1/project_conv"),
  (r"model\.(\d+)\.4", r"block_\1/project_bn"),
  (r"fc", "classifier"),
)
_V2_TORCH_NAMES: TorchNames = (
  (r"conv1\.0", "stem_conv"),
  (r"conv1\.1", "stem_bn"),
  (r"blocks\.(\d)\.(\d+)\.conv\.0", r"blocks_\1_\2/expand_conv"),
  (r"blocks\.(\d)\.(\d+)\.conv\.1", r"blocks_\1_\2/expand_bn"),
  (r"blocks\.(\d)\.(\d+)\.conv\.3", r"blocks_\1_\2/depthwise_conv"),
  (r"blocks\.(\d)\.(\d+)\.conv\.4", r"blocks_\1_\2/depthwise_bn"),
  (r"blocks\.(\d)\.(\d+)\.conv\.6", r"blocks_\1_\2/project_conv"),
  (r"blocks\.(\d)\.(\d+)\.conv\.7", r"blocks_\1_\2/project_bn"),
  (r"conv2\.0", "last_conv"),
  (r"conv2\.1", "last_bn"),
  (r"classifier\.0", "classifier"),
)
# The seven groups of blocks of MobileNetV2: expansion, channels at width 1, stride of the first.
GROUPS = ((1, 16, 1), (6, 24, 1), (6, 32, 2), (6, 64, 2), (6, 96, 1), (6, 160, 2), (6, 320, 1))
GROUPS_OF = {"stage1": (0, 1), "stage2": (2,), "stage3": (3, 4), "stage4": (5, 6)}


class MobileNetV1(RectifiedModel):
  """MobileNetV1 for ImageNet: a 3x3 stem of stride 2, then separable blocks; sizes from 32x32.

  The stem ends with a separable block of stride 1, and every stage starts with one of stride 2.
  Variables are named after PyTorch's modules: model.0.0, .1 -> stem_conv, stem_bn;
  model.1.0, .1, .3, .4 -> block_1/depthwise_conv, depthwise_bn, project_conv, project_bn (block_1
  belongs to the stem, block_2 starts stage1); fc -> classifier.

  Features, for images (B, H, W, C), sizes rounded up, all after ReLU:
    stem (B, H/2, W/2, widths[0]), stage1 (B, H/4, W/4, widths[1]), ..., stage4
    (B, H/32, W/32, widths[4]), and pooled (B, widths[4]), their mean over the image.
  Preactivations: the same before the last ReLU; pooled has none.

  Attributes:
    stem: channels of the first convolution.
    widths: channels of the stem's feature and of the four stages.
    blocks: number of separable blocks of the four stages.
    num_classes: number of classes.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.

  Source: Howard et al., arXiv:1704.04861, table 1, as in mdistiller's imagenet/mobilenetv1.py, with
  its names (stem 32, widths 64-128-256-512-1024, blocks 2-2-6-2); that code has no tap at the stem.
  The last block has stride 1; the 2 in the paper's table is a misprint. Initial values are
  PyTorch's defaults.
  """

  smallest: ClassVar[int] = 32  # the stem and four stages halve the image
  torch_names: ClassVar[TorchNames] = _V1_TORCH_NAMES

  stem: int
  widths: tuple[int, int, int, int, int]
  blocks: tuple[int, int, int, int]
  num_classes: int
  axis_name: str | None = None
  dtype: Any = None

  def setup(self) -> None:
    """Create the layers; their variables are created when they first run."""
    self.stem_conv = convolution(self.stem, 3, self.dtype, 2, kernel_init=torch_uniform)
    self.stem_bn = batch_norm(self.axis_name, self.dtype)
    blocks = [SeparableBlock(self.widths[0], 1, self.axis_name, self.dtype)]
    for width, count in zip(self.widths[1:], self.blocks, strict=True):
      for i in range(count):
        blocks.append(SeparableBlock(width, 2 if i == 0 else 1, self.axis_name, self.dtype))
    self.block = {str(i): block for i, block in enumerate(blocks, 1)}  # numbered as in PyTorch
    self.classifier = linear(self.num_classes, self.widths[4], self.dtype)

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    return dict(zip(_STAGES, (*self.widths, self.widths[4]), strict=True))

  def preactivation(self, stage: str, x: Array, train: bool) -> Array:
    """The output of a stage before its last ReLU; see RectifiedModel."""
    if stage == "stem":
      x = nn.relu(self.stem_bn(self.stem_conv(x), use_running_average=not train))
    ends = list(accumulate((1, 1, *self.blocks)))
    k = _STAGES.index(stage)
    return run_blocks([self.block[str(i)] for i in range(ends[k], ends[k + 1])], x, train)


class MobileNetV2(StagedModel):
  """MobileNetV2 for small images, of any size from 16x16: a stem, inverted residuals, a last 1x1.

  Seven groups of blocks follow the 3x3 stem, which halves the image. Variables are named after
  PyTorch's modules: conv1.0, .1 -> stem_conv, stem_bn; blocks.2.1.conv.0, .1, .3, .4, .6,
  .7 -> blocks_2_1/expand_conv, expand_bn, depthwise_conv, depthwise_bn, project_conv, project_bn;
  conv2.0, .1 -> last_conv, last_bn; classifier.0 -> classifier.

  Features, for images (B, H, W, C), sizes rounded up, w being `width`:
    stem (B, H/2, W/2, 32w) after ReLU; stage1 (B, H/2, W/2, 24w), stage2 (B, H/4, W/4, 32w),
    stage3 (B, H/8, W/8, 96w), stage4 (B, H/16, W/16, 320w), which end in a linear bottleneck and
    have both signs; pooled (B, last_width), the mean over the image of a 1x1 convolution, BN
    and ReLU of stage4.
  Preactivations: the stem before its ReLU; for the stages the features themselves.

  Attributes:
    width: factor of all channels but the last; the products are rounded down.
    repeats: number of blocks of the seven groups: groups 0 and 1 are stage1, 2 is stage2, 3 and 4
      are stage3, 5 and 6 are stage4.
    last_width: channels of the last convolution.
    num_classes: number of classes.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.

  Source: Sandler et al., CVPR 2018, as in RepDistiller's models/mobilenetv2.py (repeats
  1-2-3-4-3-3-1, last_width 1280, width 0.5): ReLU instead of the paper's ReLU6, a first group that
  keeps its 1x1 expansion by 1, stride 1 in group 1 and no dropout. Initial values are those of that
  code: He's by fan-out for convolutions, normal with standard deviation 0.01 for the classifier.
  """

  smallest: ClassVar[int] = 16  # the stem and three stages halve the image
  signed_stages: ClassVar[tuple[str, ...]] = ("stage1", "stage2", "stage3", "stage4")
  torch_names: ClassVar[TorchNames] = _V2_TORCH_NAMES

  width: float
  repeats: tuple[int, int, int, int, int, int, int]
  last_width: int
  num_classes: int
  axis_name: str | None = None
  dtype: Any = None

  def setup(self) -> None:
    """Create the layers; their variables are created when they first run."""
    self.stem_conv = convolution(self.channels["stem"], 3, self.dtype, 2)
    self.stem_bn = batch_norm(self.axis_name, self.dtype)
    self.blocks = [self._group(k) for k in range(len(GROUPS))]
    self.last_conv = convolution(self.last_width, 1, self.dtype)
    self.last_bn = batch_norm(self.axis_name, self.dtype)
    normal = nn.initializers.normal(0.01)
    self.classifier = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=normal)

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    ends = {stage: self._scaled(GROUPS[groups[-1]][1]) for stage, groups in GROUPS_OF.items()}
    return {"stem": self._scaled(32)} | ends | {"pooled": self.last_width}

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """The feature of one stage, and its preactivation; see StagedModel."""
    if stage == "stem":
      preactivation = self.stem_bn(self.stem_conv(x), use_running_average=not train)
      return nn.relu(preactivation), {stage: preactivation}
    if stage == "pooled":
      x = nn.relu(self.last_bn(self.last_conv(x), use_running_average=not train))
      return jnp.mean(x, axis=(1, 2)), {}
    for group in GROUPS_OF[stage]:
      for block in self.blocks[group]:
        x = block(x, train)
    return x, {stage: x}

  def _scaled(self, channels: int) -> int:
    return int(channels * self.width)

  def _group(self, k: int) -> list[InvertedResidual]:
    expansion, channels, stride = GROUPS[k]
    strides = [stride] + [1] * (self.repeats[k] - 1)
    width = self._scaled(channels)
    return [InvertedResidual(width, expansion, s, self.axis_name, self.dtype) for s in strides]


class SeparableBlock(nn.Module):
  """Depthwise 3x3, BN, ReLU, 1x1, BN, without the last ReLU.

  Attributes:
    width: output channels.
    stride: of the depthwise convolution.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.
  """

  width: int
  stride: int
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """(B, H, W, C) -> (B, H / stride, W / stride, width), rounded up."""
    x = nn.relu(_depthwise(self, x, train, kernel_init=torch_uniform))
    return _pointwise(self, "project", x, self.width, train, kernel_init=torch_uniform)


class InvertedResidual(nn.Module):
  """1x1 expansion, BN, ReLU, depthwise 3x3, BN, ReLU, 1x1 projection, BN; plus the input.

  The input is added if it has the output's shape, that is at stride 1 and with equal channels.

  Attributes:
    width: output channels.
    expansion: channels between the 1x1 convolutions / input channels.
    stride: of the depthwise convolution.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.
    inner: channels between the 1x1 convolutions; 0 takes those of `expansion`.
  """

  width: int
  expansion: int
  stride: int
  axis_name: str | None = None
  dtype: Any = None
  inner: int = 0

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """(B, H, W, C) -> (B, H / stride, W / stride, width), rounded up."""
    inner = self.inner or x.shape[-1] * self.expansion
    y = nn.relu(_pointwise(self, "expand", x, inner, train))
    y = nn.relu(_depthwise(self, y, train))
    y = _pointwise(self, "project", y, self.width, train)
    return x + y if self.stride == 1 and x.shape[-1] == self.width else y


def _pointwise(
  block: SeparableBlock | InvertedResidual,
  name: str,
  x: Array,
  width: int,
  train: bool,
  *,
  kernel_init: Initializer = he_normal,
) -> Array:
  """The submodules {name}_conv, 1x1 to `width` channels, and {name}_bn of a block."""
  conv = convolution(width, 1, block.dtype, name=f"{name}_conv", kernel_init=kernel_init)
  norm = batch_norm(block.axis_name, block.dtype, f"{name}_bn")
  return norm(conv(x), use_running_average=not train)


def _depthwise(
  block: SeparableBlock | InvertedResidual,
  x: Array,
  train: bool,
  *,
  kernel_init: Initializer = he_normal,
) -> Array:
  """The submodules depthwise_conv, 3x3 with the block's stride, and depthwise_bn of a block."""
  width = x.shape[-1]
  conv = convolution(
    width, 3, block.dtype, block.stride, "depthwise_conv", groups=width, kernel_init=kernel_init
  )
  norm = batch_norm(block.axis_name, block.dtype, "depthwise_bn")
  return norm(conv(x), use_running_average=not train)
