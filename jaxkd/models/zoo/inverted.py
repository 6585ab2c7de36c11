"""Networks of inverted residuals: the base of MobileNetV2, MobileNetV3 and EfficientNet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer

from jaxkd.models.layers import convolution, he_normal
from jaxkd.models.staged import StagedModel, TorchNames
from jaxkd.types import Array

_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
  "relu": nn.relu,
  "relu6": nn.relu6,
  "hard_swish": nn.hard_swish,
  "silu": nn.silu,
}


class Sizes(NamedTuple):
  """The sizes of an inverted residual.

  Attributes:
    before: input channels.
    inner: channels of the depthwise convolution; as many as `before` is a block without expansion.
    width: output channels.
    kernel: rows and columns of the depthwise convolution.
    stride: of the depthwise convolution.
    squeeze: channels inside squeeze-and-excitation; 0 is a block without it.
    activation: "relu", "relu6", "hard_swish" or "silu".
  """

  before: int
  inner: int
  width: int
  kernel: int
  stride: int
  squeeze: int
  activation: str


class InvertedModel(StagedModel):
  """A 3x3 stem of stride 2, inverted residuals, a last 1x1 convolution, mean, classifier.

  A subclass defines `blocks_of`, `stem_width`, `last_width`, `activation` and `torch_names`.
  """

  smallest: ClassVar[int] = 32  # the image is halved five times
  activation: ClassVar[str] = "relu6"

  num_classes: int
  axis_name: str | None = None
  dtype: Any = None

  @property
  def blocks_of(self) -> Mapping[str, Mapping[str, Sizes]]:
    """Stage -> its blocks by the number that they have in PyTorch."""
    raise NotImplementedError

  @property
  def stem_width(self) -> int:
    """Channels of the stem."""
    raise NotImplementedError

  @property
  def last_width(self) -> int:
    """Channels of the last 1x1 convolution."""
    raise NotImplementedError

  def setup(self) -> None:
    """Create the layers; their variables are created when they first run."""
    self.stem_conv = convolution(self.stem_width, 3, self.dtype, 2)
    self.stem_bn = self.norm()
    self.block = {
      number: InvertedBlock(
        sizes, *self._gate, self.epsilon, self.momentum, self.depthwise_init, **self._common
      )
      for blocks in self.blocks_of.values()
      for number, sizes in blocks.items()
    }
    self.last_conv = convolution(self.last_width, 1, self.dtype)
    self.last_bn = self.norm()
    self.head()

  def head(self) -> None:
    """Create the layers after the mean over the image."""
    self.classifier = nn.Dense(
      self.num_classes, dtype=self.dtype, kernel_init=nn.initializers.normal(0.01)
    )

  def norm(self) -> nn.BatchNorm:
    """A batch normalisation with the model's epsilon and momentum."""
    return nn.BatchNorm(momentum=self.momentum, epsilon=self.epsilon, **self._common)

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
    return he_normal

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    ends = {stage: list(blocks.values())[-1].width for stage, blocks in self.blocks_of.items()}
    return {"stem": self.stem_width, **ends, "pooled": self.last_width}

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """The feature of one stage; see StagedModel."""
    act = _ACTIVATIONS[self.activation]
    if stage == "stem":
      return act(self.stem_bn(self.stem_conv(x), use_running_average=not train)), {}
    if stage == "pooled":
      x = act(self.last_bn(self.last_conv(x), use_running_average=not train))
      return jnp.mean(x, axis=(1, 2)), {}
    for number in self.blocks_of[stage]:
      x = self.block[number](x, train)
    return x, {}

  @property
  def _gate(self) -> tuple[str, str]:
    """Activations inside squeeze-and-excitation."""
    return ("relu", "hard_sigmoid")

  @property
  def _common(self) -> Mapping[str, Any]:
    return {"axis_name": self.axis_name, "dtype": self.dtype}

  def _path(self, number: str, layer: int, rest: str) -> str | None:
    """The path of a layer of a block of MobileNetV3 or EfficientNet, which count them from 0."""
    blocks = {n: sizes for blocks in self.blocks_of.values() for n, sizes in blocks.items()}
    if number not in blocks:
      return None
    sizes = blocks[number]
    layers = ["expand"] if sizes.inner != sizes.before else []
    layers += ["depthwise", *(["squeeze"] if sizes.squeeze else []), "project"]
    if layer >= len(layers):
      return None
    squeeze = layers[layer] == "squeeze"
    ends = {"fc1": "reduce", "fc2": "expand"} if squeeze else {"0": "conv", "1": "bn"}
    return f"block_{number}/{layers[layer]}_{ends[rest]}" if rest in ends else None


class InvertedBlock(nn.Module):
  """1x1 expansion, depthwise convolution, squeeze-and-excitation, 1x1 projection; plus the input.

  The input is added if it has the output's shape.

  Attributes:
    sizes: the block's sizes.
    inside: activation inside squeeze-and-excitation, "relu" or "silu".
    gate: its last activation, "hard_sigmoid" or "sigmoid".
    epsilon: of batch normalisation.
    momentum: of batch normalisation.
    depthwise_init: initial values of the depthwise convolution.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.
  """

  sizes: Sizes
  inside: str
  gate: str
  epsilon: float
  momentum: float
  depthwise_init: Initializer
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """(B, H, W, C) -> (B, H / stride, W / stride, width), rounded up."""
    sizes = self.sizes
    act = _ACTIVATIONS[sizes.activation]

    def normed(name: str, y: Array, width: int, size: int = 1, **options: Any) -> Array:
      y = convolution(width, size, self.dtype, name=f"{name}_conv", **options)(y)
      norm = nn.BatchNorm(
        momentum=self.momentum,
        epsilon=self.epsilon,
        axis_name=self.axis_name,
        dtype=self.dtype,
        name=f"{name}_bn",
      )
      return norm(y, use_running_average=not train)

    y = act(normed("expand", x, sizes.inner)) if sizes.inner != sizes.before else x
    depthwise = {
      "stride": sizes.stride,
      "groups": sizes.inner,
      "kernel_init": self.depthwise_init,
    }
    y = act(normed("depthwise", y, sizes.inner, sizes.kernel, **depthwise))
    if sizes.squeeze:
      reduce = convolution(sizes.squeeze, 1, self.dtype, name="squeeze_reduce", bias=True)
      expand = convolution(sizes.inner, 1, self.dtype, name="squeeze_expand", bias=True)
      gate = nn.hard_sigmoid if self.gate == "hard_sigmoid" else nn.sigmoid
      inside = _ACTIVATIONS[self.inside]
      y = y * gate(expand(inside(reduce(jnp.mean(y, axis=(1, 2), keepdims=True)))))
    y = normed("project", y, sizes.width)
    return x + y if sizes.stride == 1 and sizes.before == sizes.width else y


def multiple_of_8(channels: float) -> int:
  """The nearest multiple of 8, at least 8 and at least 90% of the number.

  >>> multiple_of_8(72 / 4), multiple_of_8(10.8), multiple_of_8(11.2)
  (24, 16, 16)
  """
  nearest = max(8, int(channels + 4) // 8 * 8)
  return nearest if nearest >= 0.9 * channels else nearest + 8


def uniform_linear(width: int, dtype: Any) -> nn.Dense:
  """A linear layer whose kernel is uniform in +-1 / sqrt(width) at the start, and its bias 0."""
  bound = width**-0.5
  uniform = nn.initializers.uniform(2 * bound)
  return nn.Dense(
    width, dtype=dtype, kernel_init=lambda key, shape, dtype: uniform(key, shape, dtype) - bound
  )


def by_size(blocks: list[Sizes]) -> Mapping[str, Mapping[str, Sizes]]:
  """Blocks numbered from 1 by stage: each stage halves the image once after the stem."""
  stages: dict[str, dict[str, Sizes]] = {}
  halved = 0
  for number, sizes in enumerate(blocks, 1):
    halved += sizes.stride == 2
    stages.setdefault(f"stage{max(1, halved)}", {})[str(number)] = sizes
  return stages


def torch_ends(last: int) -> TorchNames:
  """Names in torchvision of the stem and of the last convolution, entry `last` of features."""
  return (
    (r"features\.0\.0", "stem_conv"),
    (r"features\.0\.1", "stem_bn"),
    (rf"features\.{last}\.0", "last_conv"),
    (rf"features\.{last}\.1", "last_bn"),
  )
