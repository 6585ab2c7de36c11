"""Residual networks with a deep stem and average pools in their shortcuts (ResNet-D)."""

from __future__ import annotations

from typing import ClassVar

from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.models.layers import batch_norm, convolution
from jaxkd.models.staged import TorchNames
from jaxkd.models.torch.names_timm import TIMM_RESNET_D_NAMES
from jaxkd.models.zoo.resnet import Bottleneck, ResNet
from jaxkd.types import Array


class ResNetD(ResNet):
  """A ResNet of bottleneck blocks for ImageNet, of timm's "d" variants, for images from 8x8.

  It differs from ResNet in two places. Three 3x3 convolutions of width / 2, width / 2 and width
  replace the 7x7 one of the stem, the first with stride 2. Where a shortcut changes the size, a
  2x2 average pool of stride 2 comes before a 1x1 convolution of stride 1; windows that extend over
  the image's edge are means over the pixels inside. Stages, features, preactivations and
  attributes are those of ResNet with its stem for ImageNet.

  Variables: those of ResNet, with stem_conv1, stem_bn1, stem_conv2, stem_bn2, stem_conv3, stem_bn
  for timm's conv1.0, .1, .3, .4, .6 and bn1.

  Source: He et al., "Bag of tricks for image classification with convolutional neural networks",
  CVPR 2019, as in timm's resnet.py (resnet26d, resnet50d). Initial values are those of ResNet.
  """

  torch_names: ClassVar[TorchNames] = TIMM_RESNET_D_NAMES

  def __post_init__(self) -> None:
    """Check the fields at construction."""
    if not (self.bottleneck and self.imagenet):
      raise ConfigError(
        f"bottleneck={self.bottleneck}, imagenet={self.imagenet}: expected True for both"
      )
    super().__post_init__()

  def stem(self) -> None:
    """Create the layers of the stem."""
    self.stem_conv1 = convolution(self.width // 2, 3, self.dtype, 2)
    self.stem_bn1 = batch_norm(self.axis_name, self.dtype)
    self.stem_conv2 = convolution(self.width // 2, 3, self.dtype)
    self.stem_bn2 = batch_norm(self.axis_name, self.dtype)
    self.stem_conv3 = convolution(self.width, 3, self.dtype)
    self.stem_bn = batch_norm(self.axis_name, self.dtype)

  def preactivation(self, stage: str, x: Array, train: bool) -> Array:
    """The output of a stage before its last ReLU; see RectifiedModel."""
    if stage != "stem":
      return super().preactivation(stage, x, train)
    x = nn.relu(self.stem_bn1(self.stem_conv1(x), use_running_average=not train))
    x = nn.relu(self.stem_bn2(self.stem_conv2(x), use_running_average=not train))
    return self.stem_bn(self.stem_conv3(x), use_running_average=not train)

  @property
  def _block(self) -> type[Bottleneck]:
    return PooledBottleneck


class PooledBottleneck(Bottleneck):
  """A Bottleneck whose shortcut, where it has another size, is a pool and a 1x1 convolution."""

  def _resized(self, x: Array) -> Array:
    x = pooled_by_two(x) if self.stride == 2 else x
    return convolution(self.width, 1, self.dtype, name="downsample_conv")(x)


def pooled_by_two(x: Array) -> Array:
  """Means over windows of 2x2, of the pixels inside the image: (B, H, W, C) -> half, rounded up.

  >>> import numpy as np
  >>> pooled_by_two(np.arange(3.0).reshape(1, 1, 3, 1)).ravel().tolist()
  [0.5, 2.0]
  """
  rows, columns = x.shape[1:3]
  padding = ((0, rows % 2), (0, columns % 2))
  return nn.avg_pool(x, (2, 2), (2, 2), padding, count_include_pad=False)
