"""ShuffleNets of the first and the second version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.models.layers import batch_norm, channel_shuffle, convolution, linear, torch_uniform
from jaxkd.models.staged import StagedModel, TorchNames
from jaxkd.types import Array

STAGES = ("stem", "stage1", "stage2", "stage3", "pooled")
_V1_TORCH_NAMES: TorchNames = (
  (r"conv1", "stem_conv"),
  (r"bn1", "stem_bn"),
  (r"layer(\d)\.(\d+)\.(conv|bn)(\d)", r"stage\1_\2/\3\4"),
  (r"linear", "classifier"),
)


class ShuffleNetV1(StagedModel):
  """ShuffleNet for small images, of any size from 8x8: a 1x1 stem and three stages that halve.

  Variables are named after PyTorch's by a plain rule: conv1, bn1 -> stem_conv, stem_bn;
  layer1.0.conv1 -> stage1_0/conv1; linear -> classifier.

  Features, for images (B, H, W, C), sizes rounded up, all after ReLU:
    stem (B, H, W, stem), stage1 (B, H/2, W/2, widths[0]), stage2 (B, H/4, W/4, widths[1]),
    stage3 (B, H/8, W/8, widths[2]), and pooled (B, widths[2]), its mean over the image.
  Preactivations: the same without the last ReLU; pooled has none.

  Attributes:
    stem: channels of the stem.
    widths: channels of the three stages; these and `stem` are multiples of 4 * groups.
    blocks: blocks of the three stages, the one that halves included.
    groups: groups of the 1x1 convolutions; the very first, from the stem, has one.
    num_classes: classes.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.

  Source: Zhang et al., CVPR 2018, as RepDistiller's models/ShuffleNetv1.py has it (stem 24, widths
  240-480-960, blocks 4-8-4, groups 3): a 1x1 stem without the paper's stride and max-pool, ReLU
  after the depthwise convolution, and a bottleneck of a quarter of what the block's branch gives,
  rounded down. Initial values are PyTorch's defaults.
  """

  smallest: ClassVar[int] = 8  # each of the three stages halves the image
  torch_names: ClassVar[TorchNames] = _V1_TORCH_NAMES

  stem: int
  widths: tuple[int, int, int]
  blocks: tuple[int, int, int]
  groups: int
  num_classes: int
  axis_name: str | None = None
  dtype: Any = None

  def setup(self) -> None:
    """Names the layers; each makes its variables when it first runs."""
    for channels in (self.stem, *self.widths):
      if channels % (4 * self.groups):
        raise ConfigError(
          f"stem and widths of ShuffleNetV1 must be multiples of {4 * self.groups}, "
          f"four times its groups, not {channels}"
        )
    self.stem_conv = convolution(self.stem, 1, self.dtype, kernel_init=torch_uniform)
    self.stem_bn = batch_norm(self.axis_name, self.dtype)
    self.stage1 = self._blocks(0)
    self.stage2 = self._blocks(1)
    self.stage3 = self._blocks(2)
    self.classifier = linear(self.num_classes, self.widths[2], self.dtype)

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    return dict(zip(STAGES, (self.stem, *self.widths, self.widths[2]), strict=True))

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """One stage's feature, and its preactivation; see StagedModel."""
    if stage == "pooled":
      return jnp.mean(x, axis=(1, 2)), {}
    if stage == "stem":
      preactivation = self.stem_bn(self.stem_conv(x), use_running_average=not train)
    else:
      blocks = {"stage1": self.stage1, "stage2": self.stage2, "stage3": self.stage3}[stage]
      *earlier, last = blocks
      for block in earlier:
        x = nn.relu(block(x, train))
      preactivation = last(x, train)
    return nn.relu(preactivation), {stage: preactivation}

  def classify(self, pooled: Array) -> Array:
    """(B, C) -> logits (B, classes)."""
    return self.classifier(pooled)

  def _blocks(self, stage: int) -> list[GroupedBlock]:
    common = {"axis_name": self.axis_name, "dtype": self.dtype}
    width, groups = self.widths[stage], self.groups
    halving = GroupedBlock(width, 1 if stage == 0 else groups, groups, halve=True, **common)
    return [halving] + [
      GroupedBlock(width, groups, groups, **common) for _ in range(self.blocks[stage] - 1)
    ]


class GroupedBlock(nn.Module):
  """Grouped 1x1, BN, ReLU, shuffle, depthwise 3x3, BN, ReLU, grouped 1x1, BN, and the input.

  The input is added; where the block halves the image, its average over 3x3 pixels (of which those
  outside the image count as zeros) follows the branch as further channels. No last ReLU.

  Attributes:
    width: output channels, those of the input included where they are appended.
    groups_in: groups of the first 1x1 convolution, and of the shuffle.
    groups_out: groups of the last 1x1 convolution.
    halve: whether the block has stride 2.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.
  """

  width: int
  groups_in: int
  groups_out: int
  halve: bool = False
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """(B, H, W, C) -> (B, H, W, width), or half the rows and columns, rounded up."""

    def layer(i: int, x: Array, width: int, size: int, groups: int, stride: int = 1) -> Array:
      conv = convolution(
        width, size, self.dtype, stride, f"conv{i}", groups=groups, kernel_init=torch_uniform
      )
      norm = batch_norm(self.axis_name, self.dtype, f"bn{i}")
      return norm(conv(x), use_running_average=not train)

    branch = self.width - x.shape[-1] if self.halve else self.width
    inner = branch // 4
    y = nn.relu(layer(1, x, inner, 1, self.groups_in))
    y = channel_shuffle(y, self.groups_in)
    y = nn.relu(layer(2, y, inner, 3, inner, 2 if self.halve else 1))
    y = layer(3, y, branch, 1, self.groups_out)
    if not self.halve:
      return y + x
    averaged = nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    return jnp.concatenate([y, averaged], axis=-1)


_V2_TORCH_NAMES: TorchNames = (
  (r"conv1", "stem_conv"),
  (r"bn1", "stem_bn"),
  (r"layer(\d)\.(\d+)\.(conv|bn)(\d)", r"stage\1_\2/\3\4"),
  (r"conv2", "last_conv"),
  (r"bn2", "last_bn"),
  (r"linear", "classifier"),
)


class ShuffleNetV2(StagedModel):
  """ShuffleNetV2 for small images, of any size from 8x8: a 1x1 stem, three stages, a last 1x1.

  Variables are named after PyTorch's by a plain rule: conv1, bn1 -> stem_conv, stem_bn;
  layer1.0.conv1 -> stage1_0/conv1; conv2, bn2 -> last_conv, last_bn; linear -> classifier.

  Features, for images (B, H, W, C), sizes rounded up, none negative:
    stem (B, H, W, stem), stage1 (B, H/2, W/2, widths[0]), stage2 (B, H/4, W/4, widths[1]),
    stage3 (B, H/8, W/8, widths[2]); pooled (B, last_width), the mean over the image of a 1x1
    convolution, BN and ReLU of stage3.
  Preactivations: of the stem before its ReLU. Of the stages as published, before the last block's
  ReLU and also before its shuffle: the half that the block left alone, then the other before its
  ReLU. So feature = channel_shuffle(relu(preactivation), 2), and their channels differ in order.

  Attributes:
    stem: channels of the stem.
    widths: channels of the three stages, even numbers.
    blocks: blocks of the three stages, the one that halves the image included.
    last_width: channels of the last convolution.
    num_classes: classes.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.

  Source: Ma et al., ECCV 2018, as RepDistiller's models/ShuffleNetv2.py has it (stem 24, size 1:
  widths 116-232-464, last_width 1024, blocks 4-8-4): a 1x1 stem without the paper's stride and
  max-pool. Initial values are PyTorch's defaults.
  """

  smallest: ClassVar[int] = 8  # each of the three stages halves the image
  torch_names: ClassVar[TorchNames] = _V2_TORCH_NAMES

  stem: int
  widths: tuple[int, int, int]
  blocks: tuple[int, int, int]
  last_width: int
  num_classes: int
  axis_name: str | None = None
  dtype: Any = None

  def setup(self) -> None:
    """Names the layers; each makes its variables when it first runs."""
    for width in self.widths:
      if width % 2:
        raise ConfigError(f"widths of ShuffleNetV2 must be even numbers, not {width}")
    self.stem_conv = convolution(self.stem, 1, self.dtype, kernel_init=torch_uniform)
    self.stem_bn = batch_norm(self.axis_name, self.dtype)
    self.stage1 = self._blocks(0)
    self.stage2 = self._blocks(1)
    self.stage3 = self._blocks(2)
    self.last_conv = convolution(self.last_width, 1, self.dtype, kernel_init=torch_uniform)
    self.last_bn = batch_norm(self.axis_name, self.dtype)
    self.classifier = linear(self.num_classes, self.last_width, self.dtype)

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    return dict(zip(STAGES, (self.stem, *self.widths, self.last_width), strict=True))

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """One stage's feature, and its preactivation; see StagedModel."""
    if stage == "stem":
      preactivation = self.stem_bn(self.stem_conv(x), use_running_average=not train)
      return nn.relu(preactivation), {stage: preactivation}
    if stage == "pooled":
      x = nn.relu(self.last_bn(self.last_conv(x), use_running_average=not train))
      return jnp.mean(x, axis=(1, 2)), {}
    blocks = {"stage1": self.stage1, "stage2": self.stage2, "stage3": self.stage3}[stage]
    for block in blocks:
      x, preactivation = block(x, train)
    return x, {stage: preactivation}

  def classify(self, pooled: Array) -> Array:
    """(B, C) -> logits (B, classes)."""
    return self.classifier(pooled)

  def _blocks(self, stage: int) -> list[SplitBlock]:
    common = {"axis_name": self.axis_name, "dtype": self.dtype}
    width = self.widths[stage]
    halving = SplitBlock(width, halve=True, **common)
    return [halving] + [SplitBlock(width, **common) for _ in range(self.blocks[stage] - 1)]


class SplitBlock(nn.Module):
  """Half of the channels untouched, the other half 1x1, depthwise 3x3, 1x1; both shuffled.

  Where the block halves the image, both halves are made of the whole input: the first by a
  depthwise 3x3 and a 1x1. BN follows every convolution, and ReLU every 1x1.

  Attributes:
    width: output channels; without `halve` also those of the input.
    halve: whether the block has stride 2.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.
  """

  width: int
  halve: bool = False
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> tuple[Array, Array]:
    """(B, H, W, C) -> the feature (B, H, W, width) and the same before ReLU and shuffle."""

    def layer(i: int, x: Array, size: int) -> Array:
      depthwise = size > 1
      conv = convolution(
        x.shape[-1] if depthwise else half,
        size,
        self.dtype,
        2 if depthwise and self.halve else 1,
        f"conv{i}",
        groups=x.shape[-1] if depthwise else 1,
        kernel_init=torch_uniform,
      )
      norm = batch_norm(self.axis_name, self.dtype, f"bn{i}")
      return norm(conv(x), use_running_average=not train)

    half = self.width // 2
    if self.halve:
      kept = layer(2, layer(1, x, 3), 1)
      left, right, first = nn.relu(kept), x, 3
    else:
      left, right, first = x[..., :half], x[..., half:], 1
      kept = left
    right = nn.relu(layer(first, right, 1))
    right = layer(first + 2, layer(first + 1, right, 3), 1)
    feature = channel_shuffle(jnp.concatenate([left, nn.relu(right)], axis=-1), 2)
    return feature, jnp.concatenate([kept, right], axis=-1)
