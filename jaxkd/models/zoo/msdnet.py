"""MSDNet: a multi-scale dense network with an exit after every block."""

from __future__ import annotations

from typing import Any, ClassVar

from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.models.compose.heads import ConvExit
from jaxkd.models.layers import check_images
from jaxkd.models.staged import TorchNames
from jaxkd.models.zoo.multiscale import (
  DenseLayer,
  Layer,
  Maps,
  Stem,
  Transition,
  layers_per_block,
  plan,
)
from jaxkd.types import Array, Output

# MSDNet-PyTorch numbers the modules in order: convolution, norm, ReLU, convolution, norm.
_NET = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2"}
_TORCH_NAMES: TorchNames = (
  (
    r"blocks\.(\d+)\.(\d+)\.layers\.(\d+)\.conv_(down|normal)\.net\.(\d)",
    lambda match: f"block_{match[1]}_{match[2]}/{match[4]}_{match[3]}/{_NET[match[5]]}",
  ),
  (
    r"blocks\.(\d+)\.(\d+)\.(?:layers|m)\.(\d+)\.net\.(\d)",
    lambda match: f"block_{match[1]}_{match[2]}/scale_{match[3]}/{_NET[match[4]]}",
  ),
  (r"classifier\.(\d+)\.m\.0\.net\.(\d)", lambda match: f"exit_{match[1]}/{_NET[match[2]]}"),
  (r"classifier\.(\d+)\.m\.1\.net\.0", r"exit_\1/conv2"),
  (r"classifier\.(\d+)\.m\.1\.net\.1", r"exit_\1/bn2"),
  (r"classifier\.(\d+)\.linear", r"exit_\1/classifier"),
)


class MSDNet(nn.Module):
  """A dense network of several scales with a classifier after each of its `blocks`.

  Every layer has maps of several scales, each half as large as the previous one, and appends to
  each map new channels computed from it and from the finer map. An exit reads the coarsest map
  only. Finer scales end before the last layer (`prune`), since no later exit needs them. Images may
  have any size from 2^(scales - 1).

  Variables are named after PyTorch's modules: blocks.B.I -> block_B_I; inside,
  layers.J.conv_down, layers.J.conv_normal -> down_J, normal_J, layers.J, m.J -> scale_J (J = 0 is
  the finest scale there); classifier.B -> exit_B; convolutions and norms are conv1, bn1, conv2, bn2
  in the order in which they run.

  Features of every exit, for images (B, H, W, C): "coarsest", the map that the exit reads, after
  ReLU, (B, h, w, c) with h = H / 2^(scales - 1), rounded up; "pooled", (B, exit_width), the input
  of its linear classifier. No preactivations: the maps are concatenations of outputs of ReLUs.

  Attributes:
    num_classes: number of classes.
    blocks: number of blocks, each with an exit.
    base: number of layers of the first block.
    step: number of layers of a later block, see `step_mode`.
    step_mode: "even": `step` layers in every later block; "lin_grow": b * step + 1 in block b.
    channels: channels of the finest map before the first layer.
    growth_rate: channels that a layer adds to the finest map.
    growth_factors: factor of `channels` and `growth_rate` for each scale.
    bottleneck_factors: for each scale, the largest number of output channels of the 1x1 convolution
      before a 3x3 convolution that reads this scale, in multiples of the latter's output channels.
    scales: number of scales at the start.
    prune: "max": each number of remaining scales gets an equal part of the layers (a third with 3
      scales); "min": all scales up to the last layers, each of which drops one.
    bottleneck: a 1x1 convolution precedes every 3x3 convolution of a layer.
    reduction: the share of channels that 1x1 convolutions keep, after a scale has ended ("max") or
      after one and two thirds of the layers ("min"); 0 for no such convolutions.
    axis_name: the device axis over which batch normalisation shares its statistics in training;
      None keeps them per device.
    dtype: of the computation; None takes that of the images. Parameters and running statistics stay
      float32.
    exit_width: channels of the two convolutions of an exit.

  Raises:
    ConfigError: at construction, for a field that is out of range or inconsistent with others.

  Source: Huang et al., ICLR 2018, as in MSDNet-PyTorch's models/msdnet.py for CIFAR. An exit takes
  the mean of its last map; that code pools 2x2, which is the whole map for 32x32 images. Initial
  values of convolutions are those of the authors' Lua code, normal with variance 2 / (k * k *
  width); MSDNet-PyTorch has the same rule, but its code reaches no convolution. Classifiers have
  PyTorch's initial values.
  """

  torch_names: ClassVar[TorchNames] = _TORCH_NAMES

  num_classes: int
  blocks: int = 5
  base: int = 4
  step: int = 2
  step_mode: str = "even"
  channels: int = 16
  growth_rate: int = 6
  growth_factors: tuple[int, ...] = (1, 2, 4)
  bottleneck_factors: tuple[int, ...] = (1, 2, 4)
  scales: int = 3
  prune: str = "max"
  bottleneck: bool = True
  reduction: float = 0.5
  axis_name: str | None = None
  dtype: Any = None
  exit_width: int = 128

  def __post_init__(self) -> None:
    """Check the fields at construction."""
    self._check_fields()
    for field in ("growth_factors", "bottleneck_factors"):
      # A module with lists in its fields is not hashable.
      object.__setattr__(self, field, tuple(getattr(self, field)))
    self._plan()
    super().__post_init__()

  def setup(self) -> None:
    """Create the layers; their variables are created when they first run."""
    common = {"axis_name": self.axis_name, "dtype": self.dtype}

    def widths(units: int, finest: int = 0) -> tuple[int, ...]:
      return tuple(units * factor for factor in self.growth_factors[finest:])

    blocks: list[list[nn.Module]] = [[] for _ in range(self.blocks)]
    blocks[0].append(Stem(widths(self.channels), **common))
    for parts, layers in zip(blocks, self._plan(), strict=True):
      for layer in layers:
        factors = self.bottleneck_factors[layer.finest - layer.drops :]
        new = widths(self.growth_rate, layer.finest)
        parts.append(DenseLayer(new, layer.drops, factors if self.bottleneck else None, **common))
        if layer.reduced is not None:
          parts.append(Transition(widths(layer.reduced, layer.finest), **common))
    self.block = blocks
    self.exit = [ConvExit(self.num_classes, self.exit_width, **common) for _ in range(self.blocks)]

  @property
  def num_exits(self) -> int:
    """Number of exits, one per block."""
    return self.blocks

  @property
  def stages(self) -> tuple[str, ...]:
    """The names of the features of every exit."""
    return ("coarsest", "pooled")

  @property
  def layers_per_block(self) -> tuple[int, ...]:
    """Number of layers of each block."""
    return layers_per_block(self.blocks, self.base, self.step, self.step_mode)

  def __call__(self, images: Array, train: bool = False) -> tuple[Output, ...]:
    """Logits and features of every exit, shallowest first.

    Args:
      images: (B, H, W, C), normalised, floating point, at least 2^(scales - 1) pixels a side.
      train: whether batch normalisation uses the statistics of the batch, and updates its own.

    Raises:
      ConfigError: for images that are too small.
      ValueError: for images of another rank, or not of a floating dtype.
    """
    carry: Any = images
    outputs = []
    for block in range(self.blocks):
      carry, output = self.run_block(carry, block, train)
      outputs.append(output)
    return tuple(outputs)

  def run_block(self, carry: Any, block: int, train: bool = False) -> tuple[Maps, Output]:
    """Run one block and its exit, and no other layers.

    Args:
      carry: the images for block 0, else the maps that the previous block returned.
      block: index of the block, from 0.
      train: as in `__call__`.

    Returns:
      The maps for the next block, the finest first, and the Output of the exit.

    Raises:
      ConfigError: for an index out of range, and as `__call__`.
      ValueError: for a wrong number of maps, and as `__call__`.
    """
    if not 0 <= block < self.blocks:
      raise ConfigError(f"block {block}: this model has blocks 0 to {self.blocks - 1}")
    if block == 0:
      check_images(carry, 2 ** (self.scales - 1))
    else:
      first = self._plan()[block][0]
      count = self.scales - first.finest + first.drops
      if not isinstance(carry, tuple | list) or len(carry) != count:
        found = f"{len(carry)} maps" if isinstance(carry, tuple | list) else "an array"
        raise ValueError(f"block {block} takes the {count} maps of block {block - 1}, not {found}")
    for part in self.block[block]:
      carry = part(carry, train)
    maps = tuple(carry)
    output = self.exit[block](maps[-1], train)
    features = {"coarsest": maps[-1], "pooled": output.features["pooled"]}
    return maps, Output(output.logits, features)

  def _plan(self) -> tuple[tuple[Layer, ...], ...]:
    return plan(
      self.layers_per_block,
      scales=self.scales,
      channels=self.channels,
      growth_rate=self.growth_rate,
      prune=self.prune,
      reduction=self.reduction,
    )

  def _check_fields(self) -> None:
    counts = ("num_classes", "blocks", "base", "step", "channels", "growth_rate", "scales")
    for field in (*counts, "exit_width"):
      value = getattr(self, field)
      if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{field}={value!r}: expected a whole number of at least 1")
    for field in ("growth_factors", "bottleneck_factors"):
      factors = getattr(self, field)
      if (
        not isinstance(factors, tuple | list)
        or len(factors) != self.scales
        or not all(isinstance(factor, int) and factor >= 1 for factor in factors)
      ):
        raise ConfigError(
          f"{field}={factors!r}: expected {self.scales} whole numbers of at least 1, one per scale"
        )
    for factor in self.growth_factors[1:]:
      # Half of a scale's new channels are computed from the finer scale.
      if self.growth_rate * factor % 2:
        raise ConfigError(
          f"growth_rate={self.growth_rate} times {factor} of growth_factors="
          f"{self.growth_factors} is odd: expected even products after the first scale"
        )
    if not 0 <= self.reduction <= 1:
      raise ConfigError(f"reduction={self.reduction}: it must lie between 0 and 1")
