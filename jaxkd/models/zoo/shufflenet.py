"""ShuffleNetV1 and ShuffleNetV2 for small images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.models.layers import (
  batch_norm,
  channel_shuffle,
  convolution,
  linear,
  run_blocks,
  torch_uniform,
)
from jaxkd.models.staged import RectifiedModel, StagedModel, TorchNames
from jaxkd.types import Array

_STAGES = ("stem", "stage1", "stage2", "stage3", "pooled")
_V1_TORCH_NAMES: TorchNames = (
  (r"conv1", "stem_conv"),
  (r"bn1", "stem_bn"),
  (r"layer(\d)\.(\d+)\.(conv|bn)(\d)", r"stage\1_\2/\3\4"),
  (r"linear", "classifier"),
)
_V2_TORCH_NAMES: TorchNames = (*_V1_TORCH_NAMES, (r"conv2", "last_conv"), (r"bn2", "last_bn"))


class ShuffleNetV1(RectifiedModel):
  """ShuffleNetV1 for small images, of any size from 8x8: a 1x1 stem and three halving stages.

  Variables are named after PyTorch's modules: conv1, bn1 -> stem_conv, stem_bn;
  layer1.0.conv1 -> stage1_0/conv1; linear -> classifier.

  Features, for images (B, H, W, C), sizes rounded up, all after ReLU:
    stem (B, H, W, stem), stage1 (B, H/2, W/2, widths[0]), stage2 (B, H/4, W/4, widths[1]),
    stage3 (B, H/8, W/8, widths[2]), and pooled (B, widths[2]), its mean over the image.
  Preactivations: the same before the last ReLU; pooled has none.

  Attributes:
    stem: channels of the stem, a multiple of 4 * groups.
    widths: channels of the three stages, multiples of 4 * groups.
    blocks: number of blocks of the three stages, with the one that halves the image.
    groups: groups of the 1x1 convolutions, but for the first one after the stem, which has one
      group.
    num_classes: number of classes.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.

  Source: Zhang et al., CVPR 2018, as in RepDistiller's models/ShuffleNetv1.py (stem 24, widths
  240-480-960, blocks 4-8-4, groups 3): a 1x1 stem without the paper's stride and max-pool, ReLU
  after the depthwise convolution, and a bottleneck of a quarter of the branch's output channels,
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
    """Create the layers; their variables are created when they first run."""
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
    return dict(zip(_STAGES, (self.stem, *self.widths, self.widths[2]), strict=True))

  def preactivation(self, stage: str, x: Array, train: bool) -> Array:
    """The output of a stage before its last ReLU; see RectifiedModel."""
    if stage == "stem":
      return self.stem_bn(self.stem_conv(x), use_running_average=not train)
    return run_blocks(getattr(self, stage), x, train)

  def _blocks(self, stage: int) -> list[GroupedBlock]:
    common = {"axis_name": self.axis_name, "dtype": self.dtype}
    width, groups = self.widths[stage], self.groups
    halving = GroupedBlock(width, 1 if stage == 0 else groups, groups, halve=True, **common)
    return [halving] + [
      GroupedBlock(width, groups, groups, **common) for _ in range(self.blocks[stage] - 1)
    ]


class ShuffleNetV2(StagedModel):
  """ShuffleNetV2 for small images, of any size from 8x8: a 1x1 stem, three stages, a last 1x1.

  Variables are named after PyTorch's modules: conv1, bn1 -> stem_conv, stem_bn;
  layer1.0.conv1 -> stage1_0/conv1; conv2, bn2 -> last_conv, last_bn; linear -> classifier.

  Features, for images (B, H, W, C), sizes rounded up, none negative:
    stem (B, H, W, stem), stage1 (B, H/2, W/2, widths[0]), stage2 (B, H/4, W/4, widths[1]),
    stage3 (B, H/8, W/8, widths[2]); pooled (B, last_width), the mean over the image of a 1x1
    convolution, BN and ReLU of stage3.
  Preactivations: the stem before its ReLU. For the stages, as published, the output of the last
  block before its ReLU and its shuffle: the unchanged half of the channels, then the other half
  before its ReLU. So feature = channel_shuffle(relu(preactivation), 2), and their channels differ
  in order.

  Attributes:
    stem: channels of the stem.
    widths: channels of the three stages, even numbers.
    blocks: number of blocks of the three stages, with the one that halves the image.
    last_width: channels of the last convolution.
    num_classes: number of classes.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.

  Source: Ma et al., ECCV 2018, as in RepDistiller's models/ShuffleNetv2.py (stem 24, size 1:
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
    """Create the layers; their variables are created when they first run."""
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
    return dict(zip(_STAGES, (self.stem, *self.widths, self.last_width), strict=True))

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """The feature of one stage, and its preactivation; see StagedModel."""
    if stage == "stem":
      preactivation = self.stem_bn(self.stem_conv(x), use_running_average=not train)
      return nn.relu(preactivation), {stage: preactivation}
    if stage == "pooled":
      x = nn.relu(self.last_bn(self.last_conv(x), use_running_average=not train))
      return jnp.mean(x, axis=(1, 2)), {}
    for block in getattr(self, stage):
      x, preactivation = block(x, train)
    return x, {stage: preactivation}

  def _blocks(self, stage: int) -> list[SplitBlock]:
    common = {"axis_name": self.axis_name, "dtype": self.dtype}
    width = self.widths[stage]
    halving = SplitBlock(width, halve=True, **common)
    return [halving] + [SplitBlock(width, **common) for _ in range(self.blocks[stage] - 1)]


class GroupedBlock(nn.Module):
  """A block of ShuffleNetV1: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1, and the input.

  BN follows every convolution, ReLU the first two; the last ReLU is left to the stage. The input is
  added to the branch. In a block that halves the image, the 3x3 average of the input (pixels
  outside the image count as zeros) is appended to the branch as further channels instead.

  Attributes:
    width: output channels, with those of the appended input.
    groups_in: groups of the first 1x1 convolution, and of the shuffle.
    groups_out: groups of the last 1x1 convolution.
    halve: the block has stride 2.
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
    branch = self.width - x.shape[-1] if self.halve else self.width
    inner = branch // 4
    y = nn.relu(_pointwise(self, 1, x, inner, train, groups=self.groups_in))
    y = channel_shuffle(y, self.groups_in)
    y = nn.relu(_depthwise(self, 2, y, train))
    y = _pointwise(self, 3, y, branch, train, groups=self.groups_out)
    if not self.halve:
      return y + x
    averaged = nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    return jnp.concatenate([y, averaged], axis=-1)


class SplitBlock(nn.Module):
  """A block of ShuffleNetV2: half of the channels unchanged, half convolved, then both shuffled.

  The convolutions are 1x1, depthwise 3x3, 1x1. In a block that halves the image, both halves are
  computed from the whole input, the first by a depthwise 3x3 and a 1x1. BN follows every
  convolution, ReLU every 1x1.

  Attributes:
    width: output channels; without `halve` also the input channels.
    halve: the block has stride 2.
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
    half = self.width // 2
    if self.halve:
      kept = _pointwise(self, 2, _depthwise(self, 1, x, train), half, train)
      left, right, first = nn.relu(kept), x, 3
    else:
      left, right, first = x[..., :half], x[..., half:], 1
      kept = left
    right = nn.relu(_pointwise(self, first, right, half, train))
    right = _depthwise(self, first + 1, right, train)
    right = _pointwise(self, first + 2, right, half, train)
    feature = channel_shuffle(jnp.concatenate([left, nn.relu(right)], axis=-1), 2)
    return feature, jnp.concatenate([kept, right], axis=-1)


def _pointwise(
  block: GroupedBlock | SplitBlock, i: int, x: Array, width: int, train: bool, *, groups: int = 1
) -> Array:
  """The submodules conv{i}, 1x1 to `width` channels, and bn{i} of a block."""
  conv = convolution(
    width, 1, block.dtype, name=f"conv{i}", groups=groups, kernel_init=torch_uniform
  )
  norm = batch_norm(block.axis_name, block.dtype, f"bn{i}")
  return norm(conv(x), use_running_average=not train)


def _depthwise(block: GroupedBlock | SplitBlock, i: int, x: Array, train: bool) -> Array:
  """The submodules conv{i}, depthwise 3x3 with the block's stride, and bn{i} of a block."""
  width, stride = x.shape[-1], 2 if block.halve else 1
  conv = convolution(
    width, 3, block.dtype, stride, f"conv{i}", groups=width, kernel_init=torch_uniform
  )
  norm = batch_norm(block.axis_name, block.dtype, f"bn{i}")
  return norm(conv(x), use_running_average=not train)
