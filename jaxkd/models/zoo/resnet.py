"""Residual networks of basic and bottleneck blocks, for CIFAR and for ImageNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.models.layers import batch_norm, convolution, linear, run_blocks
from jaxkd.models.staged import RectifiedModel, TorchNames
from jaxkd.types import Array

_CIFAR_STAGES = ("stem", "stage1", "stage2", "stage3", "pooled")
_STAGES = ("stem", "stage1", "stage2", "stage3", "stage4", "pooled")
# Module names in torchvision and RepDistiller.
_TORCH_NAMES: TorchNames = (
  (r"conv1", "stem_conv"),
  (r"bn1", "stem_bn"),
  (r"fc|linear", "classifier"),
  (r"layer(\d)\.(\d+)\.(conv|bn)(\d)", r"stage\1_\2/\3\4"),
  (r"layer(\d)\.(\d+)\.(?:downsample|shortcut)\.0", r"stage\1_\2/downsample_conv"),
  (r"layer(\d)\.(\d+)\.(?:downsample|shortcut)\.1", r"stage\1_\2/downsample_bn"),
)


class CifarResNet(RectifiedModel):
  """A residual network of 6 x `blocks` + 2 layers for small images, of any size from 4x4.

  A 3x3 stem, three stages of `blocks` basic blocks (the second and third halve the image), a mean
  over the image, a linear classifier. Variables are named after PyTorch's modules:
  conv1, bn1 -> stem_conv, stem_bn; layer1.0.conv1 -> stage1_0/conv1; downsample.0, .1 ->
  downsample_conv, downsample_bn; fc -> classifier.

  Features, for images (B, H, W, C), sizes rounded up:
    stem (B, H, W, widths[0]), stage1 (B, H, W, widths[1]), stage2 (B, H/2, W/2, widths[2]),
    stage3 (B, H/4, W/4, widths[3]), all after ReLU, and pooled (B, widths[3]); with
    `stem_stride` 2, H and W are half the image's.
  Preactivations: the same before the last ReLU; pooled has none.

  Attributes:
    blocks: basic blocks per stage; the depth is 6 * blocks + 2.
    widths: channels of the stem and of the three stages.
    num_classes: number of classes.
    stem_stride: 2 halves the image at the stem, at a quarter of the cost.
    dropout: dropout rate between the two convolutions of a block.
    axis_name: the device axis over which batch normalisation shares its statistics in training;
      None keeps them per device.
    dtype: of the computation, the logits and the features; None takes that of the images.
      Parameters and running statistics stay float32.

  Source: He et al., CVPR 2016, section 4.2, as in RepDistiller's models/resnet.py: 1x1 convolutions
  where the shape changes (the paper pads with zeros), a stem narrower than stage 1 in the x4
  family, no weight decay exemptions. Initial values are PyTorch's. `stem_stride` is this project's
  addition; dropout has the position that it has in wide residual networks.
  """

  smallest: ClassVar[int] = 4  # two stages halve the image, and each output must cover a pixel
  torch_names: ClassVar[TorchNames] = _TORCH_NAMES

  blocks: int
  widths: tuple[int, int, int, int]
  num_classes: int
  stem_stride: int = 1
  dropout: float = 0.0
  axis_name: str | None = None
  dtype: Any = None

  def setup(self) -> None:
    """Create the layers; their variables are created when they first run."""
    self.stem_conv = convolution(self.widths[0], 3, self.dtype, self.stem_stride)
    self.stem_bn = batch_norm(self.axis_name, self.dtype)
    self.stage1 = self._blocks(1)
    self.stage2 = self._blocks(2)
    self.stage3 = self._blocks(3)
    self.classifier = linear(self.num_classes, self.widths[3], self.dtype)

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    return dict(zip(_CIFAR_STAGES, (*self.widths, self.widths[3]), strict=True))

  def preactivation(self, stage: str, x: Array, train: bool) -> Array:
    """The output of a stage before its last ReLU; see RectifiedModel."""
    if stage == "stem":
      return self.stem_bn(self.stem_conv(x), use_running_average=not train)
    return run_blocks(getattr(self, stage), x, train)

  def _blocks(self, stage: int) -> list[nn.Module]:
    return _stage(
      BasicBlock,
      self.blocks,
      before=self.widths[stage - 1],
      width=self.widths[stage],
      stride=1 if stage == 1 else 2,
      dropout=self.dropout,
      axis_name=self.axis_name,
      dtype=self.dtype,
    )


class ResNet(RectifiedModel):
  """A residual network of four stages, for images of any size from 8x8.

  A stem, four stages of blocks (all but the first halve the image), a mean over the image, a linear
  classifier. The stem for small images is a 3x3 convolution; the stem for ImageNet is a 7x7
  convolution of stride 2, with a 3x3 max-pool of stride 2 between its feature and stage 1.
  Variables are named after PyTorch's modules: conv1, bn1 -> stem_conv, stem_bn;
  layer1.0.conv1 -> stage1_0/conv1; downsample.0, .1 and shortcut.0, .1 -> downsample_conv,
  downsample_bn; fc and linear -> classifier.

  Features, for images (B, H, W, C), sizes rounded up, with e = 4 for bottleneck blocks, else 1:
    stem (B, H, W, width), stage1 (B, H, W, e * width), stage2 (B, H/2, W/2, 2 * e * width),
    stage3 (B, H/4, W/4, 4 * e * width), stage4 (B, H/8, W/8, 8 * e * width), all after ReLU, and
    pooled (B, 8 * e * width). With the ImageNet stem, the stem's feature (before the max-pool) has
    half these sizes, and the stages' features a quarter.
  Preactivations: the same before the last ReLU; pooled has none.

  Attributes:
    blocks: number of blocks of each stage.
    width: channels of the stem, and of the 3x3 convolutions of stage 1; each stage doubles it.
    bottleneck: bottleneck blocks (1x1, 3x3, 1x1) instead of basic blocks (3x3, 3x3).
    imagenet: the stem for ImageNet instead of the one for small images.
    num_classes: number of classes.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.
    widen: factor of the channels inside bottlenecks (2 in Wide-ResNet-50-2); 1 without them.

  Raises:
    ConfigError: at construction, for another number of stages, a stage without blocks, or another
      factor.

  Source: He et al., CVPR 2016, table 1; for small images as in RepDistiller's models/resnetv2.py,
  for ImageNet as in torchvision: a bottleneck has its stride on the 3x3 convolution (in the paper,
  on the first 1x1). Initial values are those of both: convolutions normal with variance
  2 / (k * k * width), the classifier PyTorch's default.

  >>> ResNet((3, 4, 6, 3), 64, True, False, num_classes=100).channels["stage4"]
  2048
  """

  smallest: ClassVar[int] = 8  # three stages halve the image
  torch_names: ClassVar[TorchNames] = _TORCH_NAMES

  blocks: tuple[int, ...]
  width: int
  bottleneck: bool
  imagenet: bool
  num_classes: int
  axis_name: str | None = None
  dtype: Any = None
  widen: int = 1

  def __post_init__(self) -> None:
    """Check the fields at construction."""
    if len(self.blocks) != 4 or min(self.blocks) < 1:
      raise ConfigError(f"blocks={self.blocks!r}: expected 4 numbers of at least 1")
    if self.widen != 1 and not (self.bottleneck and self.widen > 1):
      accepted = "at least 1" if self.bottleneck else "1 with bottleneck=False"
      raise ConfigError(f"widen={self.widen!r}: expected {accepted}")
    super().__post_init__()

  def setup(self) -> None:
    """Create the layers; their variables are created when they first run."""
    self.stem()
    self.stage1 = self._blocks(1)
    self.stage2 = self._blocks(2)
    self.stage3 = self._blocks(3)
    self.stage4 = self._blocks(4)
    self.classifier = linear(self.num_classes, self._widths[-1], self.dtype)

  def stem(self) -> None:
    """Create the layers of the stem."""
    if self.imagenet:
      self.stem_conv = convolution(self.width, 7, self.dtype, stride=2)
    else:
      self.stem_conv = convolution(self.width, 3, self.dtype)
    self.stem_bn = batch_norm(self.axis_name, self.dtype)

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    return dict(zip(_STAGES, (*self._widths, self._widths[-1]), strict=True))

  def preactivation(self, stage: str, x: Array, train: bool) -> Array:
    """The output of a stage before its last ReLU; see RectifiedModel."""
    if stage == "stem":
      return self.stem_bn(self.stem_conv(x), use_running_average=not train)
    if stage == "stage1" and self.imagenet:
      x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    return run_blocks(getattr(self, stage), x, train)

  @property
  def _widths(self) -> tuple[int, ...]:
    """Channels of the features of the stem and of the stages."""
    first = 4 * self.width if self.bottleneck else self.width
    return (self.width, *(first * 2**stage for stage in range(4)))

  @property
  def _block(self) -> type[BasicBlock] | type[Bottleneck]:
    return Bottleneck if self.bottleneck else BasicBlock

  def _blocks(self, stage: int) -> list[nn.Module]:
    return _stage(
      self._block,
      self.blocks[stage - 1],
      before=self._widths[stage - 1],
      width=self._widths[stage],
      stride=1 if stage == 1 else 2,
      axis_name=self.axis_name,
      dtype=self.dtype,
      **({"widen": self.widen} if self.bottleneck else {}),
    )


class BasicBlock(nn.Module):
  """conv-BN-ReLU-conv-BN plus shortcut, without the last ReLU.

  Attributes:
    width: output channels.
    stride: of the first convolution and of the shortcut.
    project: the shortcut is a 1x1 convolution and BN instead of the input itself.
    dropout: as in CifarResNet.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.
    inner: channels between the convolutions; 0 takes `width`.
  """

  width: int
  stride: int = 1
  project: bool = False
  dropout: float = 0.0
  axis_name: str | None = None
  dtype: Any = None
  inner: int = 0

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """(B, H, W, C) -> (B, H / stride, W / stride, width), rounded up."""

    def norm(name: str, y: Array) -> Array:
      return batch_norm(self.axis_name, self.dtype, name)(y, use_running_average=not train)

    y = convolution(self.inner or self.width, 3, self.dtype, self.stride, name="conv1")(x)
    y = nn.relu(norm("bn1", y))
    y = nn.Dropout(self.dropout, deterministic=not train)(y)
    y = norm("bn2", convolution(self.width, 3, self.dtype, name="conv2")(y))
    if self.project:
      x = convolution(self.width, 1, self.dtype, self.stride, name="downsample_conv")(x)
      x = norm("downsample_bn", x)
    return y + x


class Bottleneck(nn.Module):
  """1x1-3x3-1x1 convolutions, each with BN, plus shortcut, without the last ReLU.

  Attributes:
    width: output channels, a multiple of 4; the 3x3 convolution has a quarter of them.
    stride: of the 3x3 convolution and of the shortcut.
    project: the shortcut is a 1x1 convolution and BN instead of the input itself.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.
    widen: factor of the inner channels.
  """

  width: int
  stride: int = 1
  project: bool = False
  axis_name: str | None = None
  dtype: Any = None
  widen: int = 1

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """(B, H, W, C) -> (B, H / stride, W / stride, width), rounded up."""

    def norm(name: str, y: Array) -> Array:
      return batch_norm(self.axis_name, self.dtype, name)(y, use_running_average=not train)

    inner = self.width // 4 * self.widen
    y = nn.relu(norm("bn1", convolution(inner, 1, self.dtype, name="conv1")(x)))
    y = convolution(inner, 3, self.dtype, self.stride, name="conv2")(y)
    y = nn.relu(norm("bn2", y))
    y = norm("bn3", convolution(self.width, 1, self.dtype, name="conv3")(y))
    if self.project:
      x = norm("downsample_bn", self._resized(x))
    return y + x

  def _resized(self, x: Array) -> Array:
    return convolution(self.width, 1, self.dtype, self.stride, name="downsample_conv")(x)


def _stage(
  block: type[BasicBlock] | type[Bottleneck],
  count: int,
  *,
  before: int,
  width: int,
  stride: int,
  **common: Any,
) -> list[nn.Module]:
  """The `count` blocks of a stage; the first changes size and width, if they change.

  Args:
    block: class of the blocks.
    count: number of blocks.
    before: input channels of the first block.
    width: output channels of every block.
    stride: of the first block.
    **common: the blocks' other fields.
  """
  first = block(width, stride, project=stride != 1 or width != before, **common)
  return [first, *(block(width, **common) for _ in range(count - 1))]
