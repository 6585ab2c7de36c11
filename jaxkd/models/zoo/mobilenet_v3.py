"""MobileNetV3 as in torchvision and in timm."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import ClassVar

from flax import linen as nn
from jax.nn.initializers import Initializer, variance_scaling

from jaxkd.errors import ConfigError
from jaxkd.models.layers import he_normal
from jaxkd.models.staged import TorchNames
from jaxkd.models.torch.names_timm import timm_mobilenet_v3_names
from jaxkd.models.zoo.inverted import (
  InvertedModel,
  Sizes,
  by_size,
  multiple_of_8,
  torch_ends,
  uniform_linear,
)
from jaxkd.types import Array

# Blocks: inner channels / input channels, channels, kernel, stride, squeeze, Hardswish.
_BLOCKS: Mapping[str, tuple[tuple[float, int, int, int, int, int], ...]] = {
  "small": (
    (1, 16, 3, 2, 1, 0),
    (4.5, 24, 3, 2, 0, 0),
    (3.67, 24, 3, 1, 0, 0),
    (4, 40, 5, 2, 1, 1),
    (6, 40, 5, 1, 1, 1),
    (6, 40, 5, 1, 1, 1),
    (3, 48, 5, 1, 1, 1),
    (3, 48, 5, 1, 1, 1),
    (6, 96, 5, 2, 1, 1),
    (6, 96, 5, 1, 1, 1),
    (6, 96, 5, 1, 1, 1),
  ),
  "large": (
    (1, 16, 3, 1, 0, 0),
    (4, 24, 3, 2, 0, 0),
    (3, 24, 3, 1, 0, 0),
    (3, 40, 5, 2, 1, 0),
    (3, 40, 5, 1, 1, 0),
    (3, 40, 5, 1, 1, 0),
    (6, 80, 3, 2, 0, 1),
    (2.5, 80, 3, 1, 0, 1),
    (2.3, 80, 3, 1, 0, 1),
    (2.3, 80, 3, 1, 0, 1),
    (6, 112, 3, 1, 1, 1),
    (6, 112, 3, 1, 1, 1),
    (6, 160, 5, 2, 1, 1),
    (6, 160, 5, 1, 1, 1),
    (6, 160, 5, 1, 1, 1),
  ),
}
_HIDDEN = {"small": 1024, "large": 1280}
# PyTorch's fan-out of a layer with as many groups as channels.
_depthwise_normal = variance_scaling(2.0, "fan_in", "normal")


class MobileNetV3(InvertedModel):
  """MobileNetV3 as in torchvision, for images from 32x32.

  Features, for images (B, H, W, C), sizes rounded up: stem (B, H/2, W/2, 16) after Hardswish;
  stage1 (B, H/4, W/4, ...) to stage4 (B, H/32, W/32, ...), the last block of each size; pooled, the
  mean over the image of a 1x1 convolution, BN and Hardswish; penultimate (B, 1024) or (B, 1280),
  after the hidden layer and Hardswish. All have both signs; there are no preactivations.

  Attributes:
    size: "small" or "large".
    width: factor of all channels but the hidden layer's, as in timm; the products are rounded to
      multiples of 8. The stem stays at 16 below 0.75.
    num_classes: number of classes.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.

  Raises:
    ConfigError: at construction, for another size, or a width that is not positive.

  Source: Howard et al., ICCV 2019, as in torchvision's mobilenetv3.py (batch normalisation with
  epsilon 1e-3 and momentum 0.01), without its dropout. Initial values are that code's.
  """

  signed_stages: ClassVar[tuple[str, ...]] = (
    *("stem", "stage1", "stage2", "stage3", "stage4", "pooled"),
    "penultimate",
  )
  activation: ClassVar[str] = "hard_swish"

  size: str = "small"
  width: float = 1.0

  def __post_init__(self) -> None:
    """Check the fields at construction."""
    if self.size not in _BLOCKS:
      raise ConfigError(f"size={self.size!r}: expected one of {', '.join(_BLOCKS)}")
    if not self.width > 0:
      raise ConfigError(f"width={self.width!r}: expected a number > 0")
    super().__post_init__()

  @property
  def epsilon(self) -> float:
    """Epsilon of batch normalisation."""
    return 1e-3

  @property
  def momentum(self) -> float:
    """The share of batch normalisation's statistics that an update keeps."""
    return 0.99

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
    return 16 if self.width < 0.75 else multiple_of_8(16 * self.width)

  @property
  def last_width(self) -> int:
    """Channels of the last 1x1 convolution."""
    return multiple_of_8(6 * _BLOCKS[self.size][-1][1] * self.width)

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    return {**super().channels, "penultimate": _HIDDEN[self.size]}

  @property
  def blocks_of(self) -> Mapping[str, Mapping[str, Sizes]]:
    """Stage -> its blocks by the number that they have in PyTorch."""
    before, blocks = self.stem_width, []
    for expansion, channels, kernel, stride, squeezed, hard in _BLOCKS[self.size]:
      inner, width = multiple_of_8(before * expansion), multiple_of_8(channels * self.width)
      squeeze = multiple_of_8(inner / 4) if squeezed else 0
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
      *torch_ends(len(_BLOCKS[self.size]) + 1),
      (
        r"features\.(\d+)\.block\.(\d+)\.(.+)",
        lambda match: self._path(match[1], int(match[2]), match[3]),
      ),
      (r"classifier\.0", "hidden"),
      (r"classifier\.3", "classifier"),
    )


class TimmMobileNetV3(MobileNetV3):
  """MobileNetV3 as in timm, with batch normalisation's epsilon 1e-5 and momentum 0.1.

  Features, attributes and errors as in MobileNetV3.

  Source: Howard et al., ICCV 2019, as in timm's mobilenetv3.py, without its dropout, which timm
  leaves at 0. Initial values are that code's: He's by fan-out, of one channel in the depthwise
  convolutions; the classifier uniform in +-1 / sqrt(num_classes), its bias 0.

  >>> TimmMobileNetV3(10, size="small", width=0.5).channels["stage4"]
  48
  """

  @property
  def epsilon(self) -> float:
    """Epsilon of batch normalisation."""
    return 1e-5

  @property
  def momentum(self) -> float:
    """The share of batch normalisation's statistics that an update keeps."""
    return 0.9

  @property
  def depthwise_init(self) -> Initializer:
    """Initial values of the depthwise convolutions."""
    return _depthwise_normal

  def head(self) -> None:
    """Create the layers after the mean over the image; the first is a 1x1 convolution in timm."""
    self.hidden = nn.Dense(_HIDDEN[self.size], dtype=self.dtype, kernel_init=he_normal)
    self.classifier = uniform_linear(self.num_classes, self.dtype)

  @property
  def torch_names(self) -> TorchNames:  # type: ignore[override]
    """Module names in timm's code, for `jaxkd.models.from_torch`."""
    groups = groupby(channels for _, channels, *_ in _BLOCKS[self.size])
    return timm_mobilenet_v3_names([len(list(group)) for _, group in groups])
