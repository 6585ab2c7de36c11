"""EfficientNet as in torchvision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from jaxkd.models.staged import TorchNames
from jaxkd.models.zoo.inverted import (
  InvertedModel,
  Sizes,
  multiple_of_8,
  torch_ends,
  uniform_linear,
)

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
  def epsilon(self) -> float:
    """Epsilon of batch normalisation."""
    return 1e-3 if self.loose else 1e-5

  @property
  def momentum(self) -> float:
    """The share of batch normalisation's statistics that an update keeps."""
    return 0.99 if self.loose else 0.9

  def head(self) -> None:
    """Create the layers after the mean over the image."""
    self.classifier = uniform_linear(self.num_classes, self.dtype)

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
