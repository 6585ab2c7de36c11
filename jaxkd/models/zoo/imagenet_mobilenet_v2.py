"""MobileNetV2 as in torchvision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxkd.models.staged import TorchNames
from jaxkd.models.zoo.inverted import InvertedModel, Sizes, by_size, multiple_of_8, torch_ends

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
