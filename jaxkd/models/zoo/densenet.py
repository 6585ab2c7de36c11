"""DenseNet as in torchvision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import variance_scaling

from jaxkd.errors import ConfigError
from jaxkd.models.layers import batch_norm, convolution, torch_uniform
from jaxkd.models.staged import StagedModel, TorchNames
from jaxkd.types import Array

_STAGES = ("stem", "stage1", "stage2", "stage3", "stage4", "pooled")
_INITIAL = variance_scaling(2.0, "fan_in", "normal")


class DenseNet(StagedModel):
  """DenseNet: layers that read the outputs of all layers before them, for images from 32x32.

  Features, for images (B, H, W, C): stem (B, H/2, W/2, stem) after ReLU, before its max-pool;
  stage1 (B, H/4, W/4, ...) to stage4 (B, H/32, W/32, ...), the concatenations of the dense blocks,
  with both signs; pooled, the mean over the image of BN and ReLU of stage4. There are no
  preactivations.

  Attributes:
    growth: channels that each layer adds.
    depths: number of layers of the four dense blocks.
    stem: channels of the stem.
    num_classes: number of classes.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.

  Raises:
    ConfigError: at construction, unless there are four depths of at least 1.

  Source: Huang et al., CVPR 2017, as in torchvision's densenet.py: bottlenecks of 4 * growth,
  transitions to half of the channels. Initial values are that code's: He's by fan-in.
  """

  smallest: ClassVar[int] = 32
  signed_stages: ClassVar[tuple[str, ...]] = ("stage1", "stage2", "stage3", "stage4")
  torch_names: ClassVar[TorchNames] = (
    (r"features\.conv0", "stem_conv"),
    (r"features\.norm0", "stem_bn"),
    (
      # Before PyTorch 0.4 layers had names such as norm.1, which published files keep.
      r"features\.denseblock(\d)\.denselayer(\d+)\.(norm|conv)\.?(\d)",
      r"stage\1_layer\2/\3\4",
    ),
    (r"features\.transition(\d)\.(norm|conv)", r"transition\1/\2"),
    (r"features\.norm5", "last_bn"),
    (r"classifier", "classifier"),
  )

  growth: int
  depths: tuple[int, int, int, int]
  stem: int
  num_classes: int
  axis_name: str | None = None
  dtype: Any = None

  def __post_init__(self) -> None:
    """Check the fields at construction."""
    if len(self.depths) != 4 or min(self.depths) < 1:
      raise ConfigError(f"depths={self.depths!r}: expected 4 numbers of at least 1")
    super().__post_init__()

  def setup(self) -> None:
    """Create the layers; their variables are created when they first run."""
    common = {"axis_name": self.axis_name, "dtype": self.dtype}
    self.stem_conv = convolution(self.stem, 7, self.dtype, 2, kernel_init=_INITIAL)
    self.stem_bn = batch_norm(**common)
    for k, depth in enumerate(self.depths, 1):
      layers = {f"layer{i}": DenseLayer(self.growth, **common) for i in range(1, depth + 1)}
      setattr(self, f"stage{k}", layers)
    for k in (1, 2, 3):
      width = self.channels[f"stage{k}"] // 2
      setattr(self, f"transition{k}", Transition(width, **common))
    self.last_bn = batch_norm(**common)
    self.classifier = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=torch_uniform)

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    widths = [self.stem]
    for k, depth in enumerate(self.depths):
      before = widths[-1] // 2 if k else self.stem
      widths.append(before + depth * self.growth)
    return dict(zip(_STAGES, (*widths, widths[-1]), strict=True))

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """The feature of one stage; see StagedModel."""
    if stage == "stem":
      return nn.relu(self.stem_bn(self.stem_conv(x), use_running_average=not train)), {}
    if stage == "pooled":
      return jnp.mean(nn.relu(self.last_bn(x, use_running_average=not train)), axis=(1, 2)), {}
    if stage == "stage1":
      x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    else:
      x = getattr(self, f"transition{int(stage[-1]) - 1}")(x, train)
    for layer in getattr(self, stage).values():
      x = jnp.concatenate([x, layer(x, train)], axis=-1)
    return x, {}


class DenseLayer(nn.Module):
  """BN, ReLU, 1x1 convolution, BN, ReLU, 3x3 convolution.

  Attributes:
    growth: output channels.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.
  """

  growth: int
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """(B, H, W, C) -> (B, H, W, growth)."""
    for i, (width, size) in enumerate(((4 * self.growth, 1), (self.growth, 3)), 1):
      norm = batch_norm(self.axis_name, self.dtype, f"norm{i}")
      x = nn.relu(norm(x, use_running_average=not train))
      x = convolution(width, size, self.dtype, name=f"conv{i}", kernel_init=_INITIAL)(x)
    return x


class Transition(nn.Module):
  """BN, ReLU, 1x1 convolution, 2x2 average pool.

  Attributes:
    width: output channels.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.
  """

  width: int
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """(B, H, W, C) -> (B, H / 2, W / 2, width), rounded down."""
    x = batch_norm(self.axis_name, self.dtype, "norm")(x, use_running_average=not train)
    conv = convolution(self.width, 1, self.dtype, name="conv", kernel_init=_INITIAL)
    return nn.avg_pool(conv(nn.relu(x)), (2, 2), (2, 2))
