"""MobileNetV3 with timm's widths and layout."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import variance_scaling

from jaxkd.errors import ConfigError
from jaxkd.models.layers import batch_norm, convolution, linear
from jaxkd.models.staged import StagedModel, TorchNames
from jaxkd.models.torch.names_timm import timm_mobilenet_v3_names
from jaxkd.types import Array

_STAGES = ("stem", "stage1", "stage2", "stage3", "stage4", "pooled", "penultimate")
_STEM = 16
# Depthwise kernels: PyTorch's fan-out of a layer with as many groups as channels.
_depthwise_normal = variance_scaling(2.0, "fan_in", "normal")


class Group(NamedTuple):
  """Blocks of one width.

  Attributes:
    width: output channels at width 1.
    expansions: for each block, channels of its depthwise convolution / input channels; 1 is a block
      without expansion.
    kernel: rows and columns of the depthwise convolutions.
    stride: of the first block's depthwise convolution.
    squeeze: whether the blocks have squeeze-and-excitation.
    hard_swish: whether they have Hardswish instead of ReLU.
  """

  width: int
  expansions: tuple[float, ...]
  kernel: int
  stride: int
  squeeze: bool
  hard_swish: bool


class _Size(NamedTuple):
  groups: tuple[Group, ...]
  last: int  # channels of the last convolution at width 1
  hidden: int  # channels of the classifier's input at every width


_SIZES: Mapping[str, _Size] = {
  "small": _Size(
    (
      Group(16, (1,), 3, 2, True, False),
      Group(24, (4.5, 3.67), 3, 2, False, False),
      Group(40, (4, 6, 6), 5, 2, True, True),
      Group(48, (3, 3), 5, 1, True, True),
      Group(96, (6, 6, 6), 5, 2, True, True),
    ),
    576,
    1024,
  ),
  "large": _Size(
    (
      Group(16, (1,), 3, 1, False, False),
      Group(24, (4, 3), 3, 2, False, False),
      Group(40, (3, 3, 3), 5, 2, True, False),
      Group(80, (6, 2.5, 2.3, 2.3), 3, 2, False, True),
      Group(112, (6, 6), 3, 1, True, True),
      Group(160, (6, 6, 6), 5, 2, True, True),
    ),
    960,
    1280,
  ),
}


class TimmMobileNetV3(StagedModel):
  """MobileNetV3: inverted residuals with squeeze-and-excitation, for images from 32x32.

  A 3x3 stem of stride 2, groups of inverted residuals, a 1x1 convolution, the mean over the image,
  a hidden layer (a 1x1 convolution in timm), a linear classifier.

  Features, for images (B, H, W, C), sizes rounded up:
    stem (B, H/2, W/2, 16), after Hardswish; stage1 (B, H/4, W/4, ...) to stage4 (B, H/32, W/32,
    ...), the last blocks of each size, without an activation; pooled (B, ...), the mean over the
    image of the 1x1 convolution, BN and Hardswish of stage4; penultimate (B, 1024) or (B, 1280),
    after the hidden layer and Hardswish. All have both signs, and there are no preactivations.

  Variables are named after timm's modules: conv_stem, bn1 -> stem_conv, stem_bn;
  blocks.2.1.conv_pw, bn1, conv_dw, bn2, se.conv_reduce, se.conv_expand, conv_pwl, bn3 ->
  blocks_2_1/expand_conv, expand_bn, depthwise_conv, depthwise_bn, squeeze_reduce, squeeze_expand,
  project_conv, project_bn; the last of blocks -> last_conv, last_bn; conv_head -> hidden;
  classifier.

  Attributes:
    size: "small" or "large".
    width: factor of all channels but the hidden layer's; the products are rounded to multiples of
      8. The stem stays at 16 below 0.75.
    num_classes: number of classes.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.

  Raises:
    ConfigError: at construction, for another size, or a width that is not positive.

  Source: Howard et al., "Searching for MobileNetV3", ICCV 2019, as in timm's mobilenetv3.py, with
  batch normalisation's epsilon 1e-5 (torchvision: 1e-3). There is no dropout, which timm leaves at
  0. Initial values are He's by fan-out for convolutions, and PyTorch's for the classifier.

  >>> TimmMobileNetV3("small", 0.5, num_classes=10).channels["stage4"]
  48
  """

  smallest: ClassVar[int] = 32  # the stem and four stages halve the image
  signed_stages: ClassVar[tuple[str, ...]] = _STAGES

  size: str
  width: float
  num_classes: int
  axis_name: str | None = None
  dtype: Any = None

  def __post_init__(self) -> None:
    """Check the fields at construction."""
    if self.size not in _SIZES:
      raise ConfigError(f"size={self.size!r}: expected one of {', '.join(_SIZES)}")
    if not self.width > 0:
      raise ConfigError(f"width={self.width!r}: expected a number > 0")
    super().__post_init__()

  def setup(self) -> None:
    """Create the layers; their variables are created when they first run."""
    size = _SIZES[self.size]
    self.stem_conv = convolution(self.channels["stem"], 3, self.dtype, 2)
    self.stem_bn = batch_norm(self.axis_name, self.dtype)
    self.blocks = [self._group(group) for group in size.groups]
    self.last_conv = convolution(self._scaled(size.last), 1, self.dtype)
    self.last_bn = batch_norm(self.axis_name, self.dtype)
    self.hidden = convolution(size.hidden, 1, self.dtype, bias=True)
    self.classifier = linear(self.num_classes, size.hidden, self.dtype)

  @property
  def torch_names(self) -> TorchNames:  # type: ignore[override]
    """Module names in timm's code, for `jaxkd.models.from_torch`."""
    return timm_mobilenet_v3_names(len(_SIZES[self.size].groups))

  @property
  def vectors(self) -> tuple[str, ...]:
    """The stages whose features are (B, C)."""
    return ("pooled", "penultimate")

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    size = _SIZES[self.size]
    stem = _STEM if self.width < 0.75 else self._scaled(_STEM)
    ends = [self._scaled(size.groups[numbers[-1]].width) for numbers in self._groups_of.values()]
    widths = (stem, *ends, self._scaled(size.last), size.hidden)
    return dict(zip(_STAGES, widths, strict=True))

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """The feature of one stage; see StagedModel."""
    if stage == "stem":
      return nn.hard_swish(self.stem_bn(self.stem_conv(x), use_running_average=not train)), {}
    if stage == "pooled":
      x = nn.hard_swish(self.last_bn(self.last_conv(x), use_running_average=not train))
      return jnp.mean(x, axis=(1, 2)), {}
    if stage == "penultimate":
      return nn.hard_swish(self.hidden(x[:, None, None]))[:, 0, 0], {}
    for number in self._groups_of[stage]:
      for block in self.blocks[number]:
        x = block(x, train)
    return x, {}

  @property
  def _groups_of(self) -> Mapping[str, tuple[int, ...]]:
    """Stage -> numbers of its groups: each stage halves the image once."""
    halvings = accumulate(group.stride - 1 for group in _SIZES[self.size].groups)
    stages = [max(1, count) for count in halvings]
    return {
      f"stage{k}": tuple(i for i, stage in enumerate(stages) if stage == k) for k in range(1, 5)
    }

  def _scaled(self, channels: int) -> int:
    return multiple_of_8(channels * self.width)

  def _group(self, group: Group) -> list[MobileBlock]:
    strides = [group.stride] + [1] * (len(group.expansions) - 1)
    return [
      MobileBlock(
        group._replace(width=self._scaled(group.width), expansions=(expansion,), stride=stride),
        self.axis_name,
        self.dtype,
      )
      for expansion, stride in zip(group.expansions, strides, strict=True)
    ]


class MobileBlock(nn.Module):
  """1x1 expansion, depthwise convolution, squeeze-and-excitation, 1x1 projection; plus the input.

  The input is added if it has the output's shape.

  Attributes:
    spec: the block's sizes, a Group of one block, with the width as it is.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.
  """

  spec: Group
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """(B, H, W, C) -> (B, H / stride, W / stride, width), rounded up."""
    spec = self.spec
    activation = nn.hard_swish if spec.hard_swish else nn.relu
    (expansion,) = spec.expansions

    def normed(name: str, y: Array, width: int, size: int = 1, **options: Any) -> Array:
      y = convolution(width, size, self.dtype, name=f"{name}_conv", **options)(y)
      norm = batch_norm(self.axis_name, self.dtype, f"{name}_bn")
      return norm(y, use_running_average=not train)

    inner, y = x.shape[-1], x
    if expansion != 1:
      inner = multiple_of_8(inner * expansion)
      y = activation(normed("expand", y, inner))
    depthwise = {"stride": spec.stride, "groups": inner, "kernel_init": _depthwise_normal}
    y = activation(normed("depthwise", y, inner, spec.kernel, **depthwise))
    if spec.squeeze:
      y = y * self._excitation(y)
    y = normed("project", y, spec.width)
    return x + y if x.shape == y.shape else y

  def _excitation(self, x: Array) -> Array:
    width = x.shape[-1]
    reduce = convolution(multiple_of_8(width / 4), 1, self.dtype, name="squeeze_reduce", bias=True)
    expand = convolution(width, 1, self.dtype, name="squeeze_expand", bias=True)
    mean = jnp.mean(x, axis=(1, 2), keepdims=True)
    return nn.hard_sigmoid(expand(nn.relu(reduce(mean))))


def multiple_of_8(channels: float) -> int:
  """The nearest multiple of 8, at least 8 and at least 90% of `channels`.

  >>> multiple_of_8(4), multiple_of_8(18), multiple_of_8(88.08)
  (8, 24, 88)
  """
  rounded = max(8, int(channels + 4) // 8 * 8)
  return rounded + 8 if rounded < 0.9 * channels else rounded
