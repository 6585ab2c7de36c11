"""MobileNetV1: a chain of depthwise-separable convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from jaxkd.models.layers import batch_norm, convolution, linear, torch_uniform
from jaxkd.models.staged import StagedModel, TorchNames
from jaxkd.types import Array

STAGES = ("stem", "stage1", "stage2", "stage3", "stage4", "pooled")
_TORCH_NAMES: TorchNames = (
  (r"model\.0\.0", "stem_conv"),
  (r"model\.0\.1", "stem_bn"),
  (r"model\.(\d+)\.0", r"block_\1/depthwise_conv"),
  (r"model\.(\d+)\.1", r"block_\1/depthwise_bn"),
  (r"model\.(\d+)\.3", r"block_\1/project_conv"),
  (r"model\.(\d+)\.4", r"block_\1/project_bn"),
  (r"fc", "classifier"),
)


class MobileNetV1(StagedModel):
  """MobileNet for ImageNet: a 3x3 stem of stride 2, then separable blocks; sizes from 32x32.

  The stem ends with a separable block of stride 1, and every stage begins with one of stride 2.
  Variables are named after PyTorch's by a plain rule: model.0.0, .1 -> stem_conv, stem_bn;
  model.1.0, .1, .3, .4 -> block_1/depthwise_conv, depthwise_bn, project_conv, project_bn (block_1
  is the stem's, block_2 opens stage1); fc -> classifier.

  Features, for images (B, H, W, C), sizes rounded up, all after ReLU:
    stem (B, H/2, W/2, widths[0]), stage1 (B, H/4, W/4, widths[1]), ..., stage4
    (B, H/32, W/32, widths[4]), and pooled (B, widths[4]), their mean over the image.
  Preactivations: the same without the last ReLU; pooled has none.

  Attributes:
    stem: channels of the first convolution.
    widths: channels of the stem's feature and of the four stages.
    blocks: separable blocks of the four stages.
    num_classes: classes.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.

  Source: Howard et al., arXiv:1704.04861, table 1, as mdistiller's imagenet/mobilenetv1.py has it,
  with its names (stem 32, widths 64-128-256-512-1024, blocks 2-2-6-2); it has no tap at the stem.
  The last block has stride 1, where the paper's table has a misprinted 2. Initial values are
  PyTorch's defaults.
  """

  smallest: ClassVar[int] = 32  # the stem and four stages halve the image
  torch_names: ClassVar[TorchNames] = _TORCH_NAMES

  stem: int
  widths: tuple[int, int, int, int, int]
  blocks: tuple[int, int, int, int]
  num_classes: int
  axis_name: str | None = None
  dtype: Any = None

  def setup(self) -> None:
    """Names the layers; each makes its variables when it first runs."""
    self.stem_conv = convolution(self.stem, 3, self.dtype, 2, kernel_init=torch_uniform)
    self.stem_bn = batch_norm(self.axis_name, self.dtype)
    blocks = [SeparableBlock(self.widths[0], 1, self.axis_name, self.dtype)]
    for width, count in zip(self.widths[1:], self.blocks, strict=True):
      for i in range(count):
        blocks.append(SeparableBlock(width, 2 if i == 0 else 1, self.axis_name, self.dtype))
    self.block = {str(i): block for i, block in enumerate(blocks, 1)}  # counted as in PyTorch
    self.classifier = linear(self.num_classes, self.widths[4], self.dtype)

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    return dict(zip(STAGES, (*self.widths, self.widths[4]), strict=True))

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """One stage's feature, and its preactivation; see StagedModel."""
    if stage == "pooled":
      return jnp.mean(x, axis=(1, 2)), {}
    if stage == "stem":
      x = nn.relu(self.stem_bn(self.stem_conv(x), use_running_average=not train))
    ends = list(accumulate((1, 1, *self.blocks)))
    k = STAGES.index(stage)
    *earlier, last = range(ends[k], ends[k + 1])
    for i in earlier:
      x = nn.relu(self.block[str(i)](x, train))
    preactivation = self.block[str(last)](x, train)
    return nn.relu(preactivation), {stage: preactivation}

  def classify(self, pooled: Array) -> Array:
    """(B, C) -> logits (B, classes)."""
    return self.classifier(pooled)


class SeparableBlock(nn.Module):
  """Depthwise 3x3, BN, ReLU, 1x1, BN, up to but not including the last ReLU.

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

    def layer(
      name: str, x: Array, width: int, size: int, stride: int = 1, groups: int = 1
    ) -> Array:
      conv = convolution(
        width, size, self.dtype, stride, f"{name}_conv", groups=groups, kernel_init=torch_uniform
      )
      norm = batch_norm(self.axis_name, self.dtype, f"{name}_bn")
      return norm(conv(x), use_running_average=not train)

    channels = x.shape[-1]
    x = nn.relu(layer("depthwise", x, channels, 3, self.stride, channels))
    return layer("project", x, self.width, 1)
