"""Residual networks: those for CIFAR and those for ImageNet, and the blocks of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.models.layers import batch_norm, convolution, linear
from jaxkd.models.staged import StagedModel, TorchNames
from jaxkd.types import Array

# What PyTorch's residual networks call their modules, torchvision's and RepDistiller's.
TORCH_NAMES: TorchNames = (
  (r"conv1", "stem_conv"),
  (r"bn1", "stem_bn"),
  (r"fc|linear", "classifier"),
  (r"layer(\d)\.(\d+)\.(conv|bn)(\d)", r"stage\1_\2/\3\4"),
  (r"layer(\d)\.(\d+)\.(?:downsample|shortcut)\.0", r"stage\1_\2/downsample_conv"),
  (r"layer(\d)\.(\d+)\.(?:downsample|shortcut)\.1", r"stage\1_\2/downsample_bn"),
)


class BasicBlock(nn.Module):
  """conv-BN-ReLU-conv-BN plus shortcut, up to but not including the last ReLU.

  Attributes:
    width: output channels.
    stride: of the first convolution and of the shortcut.
    project: whether the shortcut is a 1x1 convolution and BN instead of the input itself.
    dropout: as in CifarResNet.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.
  """

  width: int
  stride: int = 1
  project: bool = False
  dropout: float = 0.0
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """(B, H, W, C) -> (B, H / stride, W / stride, width), rounded up."""

    def norm(name: str, y: Array) -> Array:
      return batch_norm(self.axis_name, self.dtype, name)(y, use_running_average=not train)

    y = convolution(self.width, 3, self.dtype, self.stride, name="conv1")(x)
    y = nn.relu(norm("bn1", y))
    y = nn.Dropout(self.dropout, deterministic=not train)(y)
    y = norm("bn2", convolution(self.width, 3, self.dtype, name="conv2")(y))
    if self.project:
      x = convolution(self.width, 1, self.dtype, self.stride, name="downsample_conv")(x)
      x = norm("downsample_bn", x)
    return y + x


class Bottleneck(nn.Module):
  """1x1-3x3-1x1 convolutions, each with BN, plus shortcut, up to but not including the last ReLU.

  Attributes:
    width: output channels, a multiple of 4; the 3x3 convolution has a fourth of them.
    stride: of the 3x3 convolution and of the shortcut.
    project: whether the shortcut is a 1x1 convolution and BN instead of the input itself.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.
  """

  width: int
  stride: int = 1
  project: bool = False
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """(B, H, W, C) -> (B, H / stride, W / stride, width), rounded up."""

    def norm(name: str, y: Array) -> Array:
      return batch_norm(self.axis_name, self.dtype, name)(y, use_running_average=not train)

    inner = self.width // 4
    y = nn.relu(norm("bn1", convolution(inner, 1, self.dtype, name="conv1")(x)))
    y = convolution(inner, 3, self.dtype, self.stride, name="conv2")(y)
    y = nn.relu(norm("bn2", y))
    y = norm("bn3", convolution(self.width, 1, self.dtype, name="conv3")(y))
    if self.project:
      x = convolution(self.width, 1, self.dtype, self.stride, name="downsample_conv")(x)
      x = norm("downsample_bn", x)
    return y + x


def chain(
  block: type[BasicBlock] | type[Bottleneck],
  count: int,
  *,
  before: int,
  width: int,
  stride: int,
  **common: Any,
) -> list[nn.Module]:
  """The `count` blocks of a stage: the first changes size and width, where they change.

  Args:
    block: which kind.
    count: how many.
    before: channels of what the first block reads.
    width: channels of what every block gives.
    stride: of the first block.
    **common: the blocks' other fields.
  """
  first = block(width, stride, project=stride != 1 or width != before, **common)
  return [first, *(block(width, **common) for _ in range(count - 1))]


def run_chain(blocks: Sequence[nn.Module], x: Array, train: bool) -> Array:
  """The blocks one after the other, with a ReLU after each but the last."""
  *earlier, last = blocks
  for block in earlier:
    x = nn.relu(block(x, train))
  return last(x, train)


STAGES = ("stem", "stage1", "stage2", "stage3", "pooled")


class CifarResNet(StagedModel):
  """A residual network of 6 x `blocks` + 2 layers for small images, of any size from 4x4.

  A 3x3 stem, three stages of `blocks` basic blocks (the second and third halve the image), a mean
  over the image, a linear classifier. Variables are named after PyTorch's by a plain rule:
  conv1, bn1 -> stem_conv, stem_bn; layer1.0.conv1 -> stage1_0/conv1; downsample.0, .1 ->
  downsample_conv, downsample_bn; fc -> classifier.

  Features, for images (B, H, W, C), sizes rounded up:
    stem (B, H, W, widths[0]), stage1 (B, H, W, widths[1]), stage2 (B, H/2, W/2, widths[2]),
    stage3 (B, H/4, W/4, widths[3]), all after ReLU, and pooled (B, widths[3]); with a stem that
    strides, H and W are half the image's.
  Preactivations: the same without the last ReLU; pooled has none.

  Attributes:
    blocks: basic blocks per stage; the depth is 6 * blocks + 2.
    widths: channels of the stem and of the three stages.
    num_classes: classes.
    stem_stride: 2 halves the image at the stem, for a fourth of the cost.
    dropout: share of the values between a block's convolutions that training drops.
    axis_name: the device axis over which batch normalisation shares its statistics in training;
      None keeps them per device.
    dtype: what convolutions and the classifier compute in, and what logits and features come out
      in; None follows the images. Parameters and running statistics stay float32.

  Source: He et al., CVPR 2016, section 4.2, as RepDistiller's models/resnet.py has it: 1x1
  convolutions where the shape changes (the paper pads with zeros), a stem narrower than stage 1
  in the x4 family, no weight decay exemptions. Initial values are PyTorch's. A stem that strides is
  this project's; dropout is where wide residual networks have it.
  """

  smallest: ClassVar[int] = 4  # two stages halve the image, and each output must cover a pixel
  torch_names: ClassVar[TorchNames] = TORCH_NAMES

  blocks: int
  widths: tuple[int, int, int, int]
  num_classes: int
  stem_stride: int = 1
  dropout: float = 0.0
  axis_name: str | None = None
  dtype: Any = None

  def setup(self) -> None:
    """Names the layers; each makes its variables when it first runs."""
    self.stem_conv = convolution(self.widths[0], 3, self.dtype, self.stem_stride)
    self.stem_bn = batch_norm(self.axis_name, self.dtype)
    self.stage1 = self._blocks(1)
    self.stage2 = self._blocks(2)
    self.stage3 = self._blocks(3)
    self.classifier = linear(self.num_classes, self.widths[3], self.dtype)

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    return dict(zip(STAGES, (*self.widths, self.widths[3]), strict=True))

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """One stage's feature, and its preactivation; see StagedModel."""
    if stage == "pooled":
      return jnp.mean(x, axis=(1, 2)), {}
    preactivation = self._preactivation(stage, x, train)
    return nn.relu(preactivation), {stage: preactivation}

  def classify(self, pooled: Array) -> Array:
    """(B, C) -> logits (B, classes)."""
    return self.classifier(pooled)

  def _blocks(self, stage: int) -> list[nn.Module]:
    return chain(
      BasicBlock,
      self.blocks,
      before=self.widths[stage - 1],
      width=self.widths[stage],
      stride=1 if stage == 1 else 2,
      dropout=self.dropout,
      axis_name=self.axis_name,
      dtype=self.dtype,
    )

  def _preactivation(self, stage: str, x: Array, train: bool) -> Array:
    if stage == "stem":
      return self.stem_bn(self.stem_conv(x), use_running_average=not train)
    blocks = {"stage1": self.stage1, "stage2": self.stage2, "stage3": self.stage3}[stage]
    return run_chain(blocks, x, train)


_STAGES = ("stage1", "stage2", "stage3", "stage4")


class ResNet(StagedModel):
  """A residual network of four stages, for images of any size from 8x8.

  A stem, four stages of blocks (all but the first halve the image), a mean over the image, a
  linear classifier. The stem of small images is a 3x3 convolution; that of ImageNet a 7x7
  convolution of stride 2, and a 3x3 max-pool of stride 2 between the stem's feature and stage 1.
  Variables are named after PyTorch's by a plain rule: conv1, bn1 -> stem_conv, stem_bn;
  layer1.0.conv1 -> stage1_0/conv1; downsample.0, .1 and shortcut.0, .1 -> downsample_conv,
  downsample_bn; fc and linear -> classifier.

  Features, for images (B, H, W, C), sizes rounded up, with e = 4 for bottleneck blocks, else 1:
    stem (B, H, W, width), stage1 (B, H, W, e * width), stage2 (B, H/2, W/2, 2 * e * width),
    stage3 (B, H/4, W/4, 4 * e * width), stage4 (B, H/8, W/8, 8 * e * width), all after ReLU, and
    pooled (B, 8 * e * width). With ImageNet's stem its feature is half as large, before the
    max-pool, and the stages' a fourth as large.
  Preactivations: the same without the last ReLU; pooled has none.

  Attributes:
    blocks: blocks per stage.
    width: channels of the stem, and of the 3x3 convolutions of stage 1; each stage doubles it.
    bottleneck: bottleneck blocks (1x1, 3x3, 1x1) instead of basic blocks (3x3, 3x3).
    imagenet: ImageNet's stem instead of that of small images.
    num_classes: classes.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.

  Raises:
    ConfigError: when constructed, for another number of stages, or one without blocks.

  Source: He et al., CVPR 2016, table 1. For small images as RepDistiller's models/resnetv2.py has
  it, for ImageNet as torchvision: a bottleneck's stride is on its 3x3 convolution (the paper's is
  on the first 1x1 one). Initial values are those of both: convolutions normal with variance
  2 / (k * k * width), the classifier PyTorch's default.

  >>> ResNet((3, 4, 6, 3), 64, True, False, num_classes=100).channels["stage4"]
  2048
  """

  smallest: ClassVar[int] = 8  # three stages halve the image
  torch_names: ClassVar[TorchNames] = TORCH_NAMES

  blocks: tuple[int, ...]
  width: int
  bottleneck: bool
  imagenet: bool
  num_classes: int
  axis_name: str | None = None
  dtype: Any = None

  def __post_init__(self) -> None:
    """Checks the fields, so that a mistake shows where it is made."""
    if len(self.blocks) != len(_STAGES) or min(self.blocks) < 1:
      raise ConfigError(f"blocks={self.blocks!r}: expected {len(_STAGES)} numbers of at least 1")
    super().__post_init__()

  def setup(self) -> None:
    """Names the layers; each makes its variables when it first runs."""
    if self.imagenet:
      self.stem_conv = convolution(self.width, 7, self.dtype, stride=2)
    else:
      self.stem_conv = convolution(self.width, 3, self.dtype)
    self.stem_bn = batch_norm(self.axis_name, self.dtype)
    self.stage1 = self._blocks(1)
    self.stage2 = self._blocks(2)
    self.stage3 = self._blocks(3)
    self.stage4 = self._blocks(4)
    self.classifier = linear(self.num_classes, self._widths[-1], self.dtype)

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    return dict(zip(("stem", *_STAGES, "pooled"), (*self._widths, self._widths[-1]), strict=True))

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """One stage's feature, and its preactivation; see StagedModel."""
    if stage == "pooled":
      return jnp.mean(x, axis=(1, 2)), {}
    preactivation = self._preactivation(stage, x, train)
    return nn.relu(preactivation), {stage: preactivation}

  def classify(self, pooled: Array) -> Array:
    """(B, C) -> logits (B, classes)."""
    return self.classifier(pooled)

  @property
  def _widths(self) -> tuple[int, ...]:
    """Channels of the stem's feature and of the stages'."""
    first = 4 * self.width if self.bottleneck else self.width
    return (self.width, *(first * 2**stage for stage in range(len(_STAGES))))

  def _blocks(self, stage: int) -> list[nn.Module]:
    return chain(
      Bottleneck if self.bottleneck else BasicBlock,
      self.blocks[stage - 1],
      before=self._widths[stage - 1],
      width=self._widths[stage],
      stride=1 if stage == 1 else 2,
      axis_name=self.axis_name,
      dtype=self.dtype,
    )

  def _preactivation(self, stage: str, x: Array, train: bool) -> Array:
    if stage == "stem":
      return self.stem_bn(self.stem_conv(x), use_running_average=not train)
    if stage == "stage1" and self.imagenet:
      x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    return run_chain(getattr(self, stage), x, train)
