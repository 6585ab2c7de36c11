"""MobileNetV2, MobileNetV3 and EfficientNet as in torchvision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.models.staged import TorchNames
from jaxkd.models.zoo.inverted import InvertedModel, Sizes, by_size, multiple_of_8, torch_ends
from jaxkd.types import Array

_FIVE = ("stem", "stage1", "stage2", "stage3", "stage4", "pooled")
# Groups of MobileNetV2: expansion, channels, repeats, stride of the first.
_V2 = (
  (1, 16, 1, 1),
  (6, 24, 2, 2),
  (6, 32, 3, 2),
  (6, 64, 4, 2),
  (6, 96, 3, 1),
  (6, 160, 3, 2),
  (6, 320, 1, 1),
)
# Blocks of MobileNetV3: inner channels, channels, kernel, stride, squeeze, Hardswish.
_V3 = {
  "small": (
    (16, 16, 3, 2, 1, 0),
    (72, 24, 3, 2, 0, 0),
    (88, 24, 3, 1, 0, 0),
    (96, 40, 5, 2, 1, 1),
    (240, 40, 5, 1, 1, 1),
    (240, 40, 5, 1, 1, 1),
    (120, 48, 5, 1, 1, 1),
    (144, 48, 5, 1, 1, 1),
    (288, 96, 5, 2, 1, 1),
    (576, 96, 5, 1, 1, 1),
    (576, 96, 5, 1, 1, 1),
  ),
  "large": (
    (16, 16, 3, 1, 0, 0),
    (64, 24, 3, 2, 0, 0),
    (72, 24, 3, 1, 0, 0),
    (72, 40, 5, 2, 1, 0),
    (120, 40, 5, 1, 1, 0),
    (120, 40, 5, 1, 1, 0),
    (240, 80, 3, 2, 0, 1),
    (200, 80, 3, 1, 0, 1),
    (184, 80, 3, 1, 0, 1),
    (184, 80, 3, 1, 0, 1),
    (480, 112, 3, 1, 1, 1),
    (672, 112, 3, 1, 1, 1),
    (672, 160, 5, 2, 1, 1),
    (960, 160, 5, 1, 1, 1),
    (960, 160, 5, 1, 1, 1),
  ),
}
_HIDDEN = {"small": 1024, "large": 1280}
# Stages of EfficientNet: expansion, channels, repeats, stride of the first, kernel.
_EFFICIENT = (
  (1, 16, 1, 1, 3),
  (6, 24, 2, 2, 3),
  (6, 40, 2, 2, 5),
  (6, 80, 3, 2, 3),
  (6, 112, 3, 1, 5),
  (6, 192, 4, 2, 5),
  (6, 320, 1, 1, 3),
)


class ImageNetMobileNetV2(InvertedModel):
  """MobileNetV2 as in torchvision, for images from 32x32.

  Features, for images (B, H, W, C), sizes rounded up: stem (B, H/2, W/2, 32) after ReLU6; stage1
  (B, H/4, W/4, 24) to stage4 (B, H/32, W/32, 320), the last linear bottleneck of each size, with
  both signs; pooled (B, 1280), the mean over the image of a 1x1 convolution, BN and ReLU6.

  Attributes:
    width: factor of the channels; the products are rounded to multiples of 8.
    num_classes: number of classes.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.

  Source: Sandler et al., CVPR 2018, as in torchvision's mobilenetv2.py, without its dropout.
  Initial values are that code's: He's by fan-out, the classifier normal with deviation 0.01.
  """

  signed_stages: ClassVar[tuple[str, ...]] = ("stage1", "stage2", "stage3", "stage4")

  width: float = 1.0

  @property
  def stem_width(self) -> int:
    """Channels of the stem."""
    return multiple_of_8(32 * self.width)

  @property
  def last_width(self) -> int:
    """Channels of the last 1x1 convolution."""
    return multiple_of_8(1280 * max(1.0, self.width))

  @property
  def blocks_of(self) -> Mapping[str, Mapping[str, Sizes]]:
    """Stage -> its blocks by the number that they have in PyTorch."""
    before, blocks = self.stem_width, []
    for expansion, channels, repeats, stride in _V2:
      width = multiple_of_8(channels * self.width)
      for i in range(repeats):
        first = stride if i == 0 else 1
        blocks.append(Sizes(before, expansion * before, width, 3, first, 0, "relu6"))
        before = width
    return by_size(blocks)

  @property
  def torch_names(self) -> TorchNames:  # type: ignore[override]
    """Module names in torchvision, for `jaxkd.models.from_torch`."""

    def path(match: Any) -> str | None:
      blocks = {n: sizes for blocks in self.blocks_of.values() for n, sizes in blocks.items()}
      if match[1] not in blocks:
        return None
      layers = ["depthwise_conv", "depthwise_bn", "project_conv", "project_bn"]
      names = ["0.0", "0.1", "1", "2"]
      if blocks[match[1]].inner != blocks[match[1]].before:
        layers = ["expand_conv", "expand_bn", *layers]
        names = ["0.0", "0.1", "1.0", "1.1", "2", "3"]
      layer = dict(zip(names, layers, strict=True)).get(match[2])
      return f"block_{match[1]}/{layer}" if layer else None

    last = sum(repeats for _, _, repeats, _ in _V2) + 1
    return (
      *torch_ends(last),
      (r"features\.(\d+)\.conv\.(.+)", path),
      (r"classifier\.1", "classifier"),
    )


class MobileNetV3(InvertedModel):
  """MobileNetV3 as in torchvision, for images from 32x32.

  Features, for images (B, H, W, C), sizes rounded up: stem (B, H/2, W/2, 16) after Hardswish;
  stage1 (B, H/4, W/4, ...) to stage4 (B, H/32, W/32, ...), the last block of each size; pooled, the
  mean over the image of a 1x1 convolution, BN and Hardswish; penultimate (B, 1024) or (B, 1280),
  after the hidden layer and Hardswish. All have both signs; there are no preactivations.

  Attributes:
    size: "small" or "large".
    num_classes: number of classes.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.

  Raises:
    ConfigError: at construction, for another size.

  Source: Howard et al., ICCV 2019, as in torchvision's mobilenetv3.py (batch normalisation with
  epsilon 1e-3 and momentum 0.01), without its dropout. Initial values are that code's.
  """

  signed_stages: ClassVar[tuple[str, ...]] = (*_FIVE, "penultimate")
  activation: ClassVar[str] = "hard_swish"
  epsilon: ClassVar[float] = 1e-3
  momentum: ClassVar[float] = 0.99

  size: str = "small"

  def __post_init__(self) -> None:
    """Check the fields at construction."""
    if self.size not in _V3:
      raise ConfigError(f"size={self.size!r}: expected one of {', '.join(_V3)}")
    super().__post_init__()

  def head(self) -> None:
    """Create the layers after the mean over the image."""
    normal = nn.initializers.normal(0.01)
    self.hidden = nn.Dense(_HIDDEN[self.size], dtype=self.dtype, kernel_init=normal)
    super().head()

  @property
  def vectors(self) -> tuple[str, ...]:
    """The stages whose features are (B, C)."""
    return ("pooled", "penultimate")

  @property
  def stem_width(self) -> int:
    """Channels of the stem."""
    return 16

  @property
  def last_width(self) -> int:
    """Channels of the last 1x1 convolution."""
    return 6 * _V3[self.size][-1][1]

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    return {**super().channels, "penultimate": _HIDDEN[self.size]}

  @property
  def blocks_of(self) -> Mapping[str, Mapping[str, Sizes]]:
    """Stage -> its blocks by the number that they have in PyTorch."""
    before, blocks = self.stem_width, []
    for inner, width, kernel, stride, squeezed, hard in _V3[self.size]:
      squeeze = multiple_of_8(inner // 4) if squeezed else 0
      activation = "hard_swish" if hard else "relu"
      blocks.append(Sizes(before, inner, width, kernel, stride, squeeze, activation))
      before = width
    return by_size(blocks)

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """The feature of one stage; see StagedModel."""
    if stage == "penultimate":
      return nn.hard_swish(self.hidden(x)), {}
    return super().run_stage(stage, x, train)

  @property
  def torch_names(self) -> TorchNames:  # type: ignore[override]
    """Module names in torchvision, for `jaxkd.models.from_torch`."""
    return (
      *torch_ends(len(_V3[self.size]) + 1),
      (
        r"features\.(\d+)\.block\.(\d+)\.(.+)",
        lambda match: self._path(match[1], int(match[2]), match[3]),
      ),
      (r"classifier\.0", "hidden"),
      (r"classifier\.3", "classifier"),
    )


class EfficientNet(InvertedModel):
  """EfficientNet as in torchvision, for images from 32x32.

  Features, for images (B, H, W, C), sizes rounded up: stem (B, H/2, W/2, ...) after SiLU; stage1 to
  stage7 with 1/2, 1/4, 1/8, 1/16, 1/16, 1/32 and 1/32 of the rows and columns, each the output of
  an inverted residual; pooled, the mean over the image of a 1x1 convolution, BN and SiLU. All have
  both signs; there are no preactivations.

  Attributes:
    width: factor of the channels; the products are rounded to multiples of 8.
    depth: factor of the numbers of blocks; the products are rounded up.
    loose: batch normalisation with epsilon 1e-3 and momentum 0.01, as in b5 to b7, instead of 1e-5
      and 0.1.
    num_classes: number of classes.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.

  Source: Tan and Le, ICML 2019, as in torchvision's efficientnet.py, without its dropout and
  stochastic depth. Initial values are that code's.
  """

  signed_stages: ClassVar[tuple[str, ...]] = (
    "stem",
    *(f"stage{i}" for i in range(1, 8)),
    "pooled",
  )
  activation: ClassVar[str] = "silu"

  width: float = 1.0
  depth: float = 1.0
  loose: bool = False

  @property
  def epsilon_(self) -> float:
    """Epsilon of batch normalisation."""
    return 1e-3 if self.loose else 1e-5

  @property
  def momentum_(self) -> float:
    """The share of batch normalisation's statistics that an update keeps."""
    return 0.99 if self.loose else 0.9

  def head(self) -> None:
    """Create the layers after the mean over the image."""
    bound = self.num_classes**-0.5
    uniform = nn.initializers.uniform(2 * bound)
    self.classifier = nn.Dense(
      self.num_classes,
      dtype=self.dtype,
      kernel_init=lambda key, shape, dtype: uniform(key, shape, dtype) - bound,
    )

  @property
  def stem_width(self) -> int:
    """Channels of the stem."""
    return multiple_of_8(32 * self.width)

  @property
  def last_width(self) -> int:
    """Channels of the last 1x1 convolution."""
    return 4 * multiple_of_8(_EFFICIENT[-1][1] * self.width)

  @property
  def blocks_of(self) -> Mapping[str, Mapping[str, Sizes]]:
    """Stage -> its blocks by the number that they have in PyTorch."""
    before, stages = self.stem_width, {}
    for k, (expansion, channels, repeats, stride, kernel) in enumerate(_EFFICIENT, 1):
      width, blocks = multiple_of_8(channels * self.width), {}
      for i in range(math.ceil(repeats * self.depth)):
        inner, squeeze = multiple_of_8(before * expansion), max(1, before // 4)
        first = stride if i == 0 else 1
        blocks[f"{k}_{i}"] = Sizes(before, inner, width, kernel, first, squeeze, "silu")
        before = width
      stages[f"stage{k}"] = blocks
    return stages

  @property
  def torch_names(self) -> TorchNames:  # type: ignore[override]
    """Module names in torchvision, for `jaxkd.models.from_torch`."""
    return (
      *torch_ends(len(_EFFICIENT) + 1),
      (
        r"features\.(\d+)\.(\d+)\.block\.(\d+)\.(.+)",
        lambda match: self._path(f"{match[1]}_{match[2]}", int(match[3]), match[4]),
      ),
      (r"classifier\.1", "classifier"),
    )

  @property
  def _gate(self) -> tuple[str, str]:
    return ("silu", "sigmoid")
