"""Layers of MSDNet, and the plan: which scales every layer has, and where maps are narrowed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.models.layers import batch_norm, convolution
from jaxkd.types import Array

Maps = tuple[Array, ...]  # the finest first
Convolution = tuple[int, int, int]  # width, kernel size, stride
_STEP_MODES = ("even", "lin_grow")
_PRUNINGS = ("max", "min")


class Convolutions(nn.Module):
  """A chain of convolutions, each followed by batch normalisation and ReLU.

  Attributes:
    layers: (width, kernel size, stride) of each convolution.
    axis_name: as in MSDNet.
    dtype: as in MSDNet.
  """

  layers: tuple[Convolution, ...]
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """(B, H, W, C) -> (B, H / s, W / s, last width), rounded up; s: product of the strides."""
    for i, (width, size, stride) in enumerate(self.layers, start=1):
      x = convolution(width, size, self.dtype, stride, name=f"conv{i}")(x)
      norm = batch_norm(self.axis_name, self.dtype, name=f"bn{i}")
      x = nn.relu(norm(x, use_running_average=not train))
    return x


class Stem(nn.Module):
  """The first maps: a convolution of the image, then strided convolutions of the previous map.

  Attributes:
    widths: channels of each scale.
    axis_name: as in MSDNet.
    dtype: as in MSDNet.
  """

  widths: tuple[int, ...]
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, images: Array, train: bool = False) -> Maps:
    """(B, H, W, C) -> one map per width, with H, H / 2, H / 4, ... rows, rounded up."""
    maps, x = [], images
    for scale, width in enumerate(self.widths):
      layers = ((width, 3, 2 if scale else 1),)
      x = Convolutions(layers, self.axis_name, self.dtype, name=f"scale_{scale}")(x, train)
      maps.append(x)
    return tuple(maps)


class DenseLayer(nn.Module):
  """Append channels to every map: half computed from the finer map, half from the map itself.

  Attributes:
    widths: channels added to each output map, the finest first.
    drops: the finest input map is read, but is not among the output maps.
    bottlenecks: the factor of MSDNet.bottleneck_factors for each input map; None for no 1x1
      convolutions.
    axis_name: as in MSDNet.
    dtype: as in MSDNet.
  """

  widths: tuple[int, ...]
  drops: bool
  bottlenecks: tuple[int, ...] | None
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, maps: Maps, train: bool = False) -> Maps:
    """The maps that are kept, each with the new channels appended."""

    def path(name: str, source: int, width: int, stride: int = 1) -> Array:
      x = maps[source]
      layers: tuple[Convolution, ...] = ((width, 3, stride),)
      if self.bottlenecks is not None:
        layers = ((min(x.shape[-1], self.bottlenecks[source] * width), 1, 1), *layers)
      return Convolutions(layers, self.axis_name, self.dtype, name=name)(x, train)

    outputs = []
    for scale, width in enumerate(self.widths):
      same = scale + self.drops  # index of this scale among the input maps
      if same == 0:
        new = [path(f"normal_{scale}", same, width)]
      else:
        new = [
          path(f"down_{scale}", same - 1, width // 2, stride=2),
          path(f"normal_{scale}", same, width // 2),
        ]
      outputs.append(jnp.concatenate([maps[same], *new], axis=-1))
    return tuple(outputs)


class Transition(nn.Module):
  """Reduce the channels of every map by a 1x1 convolution.

  Attributes:
    widths: channels of each map afterwards.
    axis_name: as in MSDNet.
    dtype: as in MSDNet.
  """

  widths: tuple[int, ...]
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, maps: Maps, train: bool = False) -> Maps:
    """Maps of the same sizes with `widths` channels."""
    return tuple(
      Convolutions(((width, 1, 1),), self.axis_name, self.dtype, name=f"scale_{i}")(x, train)
      for i, (width, x) in enumerate(zip(self.widths, maps, strict=True))
    )


@dataclasses.dataclass(frozen=True)
class Layer:
  """One layer of the plan. Scale 0 has the size of the images.

  Attributes:
    finest: the finest scale of the layer's output.
    drops: the layer also reads the next finer scale, which ends there.
    reduced: channels, in units of the scales' growth factors, to which a 1x1 convolution after the
      layer reduces every scale; None for no such convolution.
  """

  finest: int
  drops: bool
  reduced: int | None


def layers_per_block(blocks: int, base: int, step: int, step_mode: str) -> tuple[int, ...]:
  """Number of layers of each block: `base`, then `step` ("even") or b * step + 1 ("lin_grow").

  Raises:
    ConfigError: for an unknown `step_mode`.

  >>> layers_per_block(4, base=4, step=2, step_mode="even")
  (4, 2, 2, 2)
  >>> layers_per_block(4, base=1, step=2, step_mode="lin_grow")
  (1, 3, 5, 7)
  """
  if step_mode not in _STEP_MODES:
    raise unknown_name("step_mode", step_mode, _STEP_MODES)
  later = (step if step_mode == "even" else step * block + 1 for block in range(1, blocks))
  return (base, *later)


def plan(
  counts: tuple[int, ...],
  *,
  scales: int,
  channels: int,
  growth_rate: int,
  prune: str,
  reduction: float,
) -> tuple[tuple[Layer, ...], ...]:
  """The layers of every block.

  With n layers in total, "max" keeps scale s for the first (s + 1) * ceil(n / scales) layers and
  reduces the channels after the first layer without it; "min" drops a scale at each of the last
  layers, so that one is left at the end, and reduces the channels after layers n // 3 and 2n // 3.

  Args:
    counts: number of layers of each block.
    scales: number of scales at the start.
    channels: channels of scale 0 before the first layer, in units of its growth factor.
    growth_rate: channels that a layer adds, in the same units.
    prune: "max" or "min".
    reduction: the share of channels kept at a reduction; 0 for no reductions.

  Raises:
    ConfigError: for an unknown `prune`, fewer layers than "min" needs to drop all scales but one,
      or a `reduction` that leaves no channel.

  >>> [layer] = plan((1,), scales=2, channels=16, growth_rate=6, prune="max", reduction=0.5)[0]
  >>> layer
  Layer(finest=0, drops=False, reduced=None)
  """
  if prune not in _PRUNINGS:
    raise unknown_name("prune", prune, _PRUNINGS)
  total = sum(counts)
  if prune == "min" and total < scales - 1:
    raise ConfigError(
      f"prune='min' drops a scale a layer: scales={scales} need at least {scales - 1} layers, "
      f"not {total}"
    )
  interval = math.ceil(total / scales)

  def finest(layer: int) -> int:
    if prune == "max":
      return max(0, layer) // interval
    return max(0, scales - total + layer)

  blocks, position, width = [], 0, channels
  for count in counts:
    layers = []
    for number in range(position, position + count):
      drops = finest(number) > finest(number - 1)
      width += growth_rate
      thirds = (total // 3, 2 * total // 3)
      narrows = reduction > 0 and (drops if prune == "max" else number + 1 in thirds)
      if narrows:
        width = _narrowed(width, reduction)
      layers.append(Layer(finest(number), drops, width if narrows else None))
    position += count
    blocks.append(tuple(layers))
  return tuple(blocks)


def _narrowed(width: int, reduction: float) -> int:
  left = math.floor(reduction * width)
  if left < 1:
    raise ConfigError(f"reduction={reduction} leaves none of {width} channels")
  return left
