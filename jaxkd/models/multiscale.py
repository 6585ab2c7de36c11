"""Layers over maps of several scales, each scale half as large as the one before."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxkd.models.layers import batch_norm, convolution
from jaxkd.types import Array

Maps = tuple[Array, ...]  # the finest first
Convolution = tuple[int, int, int]  # width, kernel size, stride


class Convolutions(nn.Module):
  """Convolution, batch normalisation and ReLU, any number of times.

  Attributes:
    layers: (width, kernel size, stride) of each convolution.
    axis_name: see MSDNet.
    dtype: see MSDNet.
  """

  layers: tuple[Convolution, ...]
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """(B, H, W, C) -> (B, H / strides, W / strides, last width), rounded up."""
    for i, (width, size, stride) in enumerate(self.layers, start=1):
      x = convolution(width, size, self.dtype, stride, name=f"conv{i}")(x)
      norm = batch_norm(self.axis_name, self.dtype, name=f"bn{i}")
      x = nn.relu(norm(x, use_running_average=not train))
    return x


class Stem(nn.Module):
  """The first maps: each but the finest a strided convolution of the one before.

  Attributes:
    widths: channels of each scale.
    axis_name: see MSDNet.
    dtype: see MSDNet.
  """

  widths: tuple[int, ...]
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, images: Array, train: bool = False) -> Maps:
    """(B, H, W, C) -> one map for each width, of H, H / 2, H / 4, ... rounded up."""
    maps, x = [], images
    for scale, width in enumerate(self.widths):
      layers = ((width, 3, 2 if scale else 1),)
      x = Convolutions(layers, self.axis_name, self.dtype, name=f"scale_{scale}")(x, train)
      maps.append(x)
    return tuple(maps)


class DenseLayer(nn.Module):
  """Adds channels to every map: half from the finer map, half from the map itself.

  Attributes:
    widths: channels added to each map that it gives, the finest first.
    drops: whether the finest map it takes is only read, not given on.
    bottlenecks: of each map that it takes, the factor of MSDNet.bottleneck_factors; None for no
      1x1 convolutions.
    axis_name: see MSDNet.
    dtype: see MSDNet.
  """

  widths: tuple[int, ...]
  drops: bool
  bottlenecks: tuple[int, ...] | None
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, maps: Maps, train: bool = False) -> Maps:
    """The maps that stay, each followed by what the finer map and it itself give."""

    def path(name: str, source: int, width: int, stride: int = 1) -> Array:
      x = maps[source]
      layers: tuple[Convolution, ...] = ((width, 3, stride),)
      if self.bottlenecks is not None:
        layers = ((min(x.shape[-1], self.bottlenecks[source] * width), 1, 1), *layers)
      return Convolutions(layers, self.axis_name, self.dtype, name=name)(x, train)

    given = []
    for scale, width in enumerate(self.widths):
      same = scale + self.drops
      if same == 0:
        new = [path(f"normal_{scale}", same, width)]
      else:
        new = [
          path(f"down_{scale}", same - 1, width // 2, stride=2),
          path(f"normal_{scale}", same, width // 2),
        ]
      given.append(jnp.concatenate([maps[same], *new], axis=-1))
    return tuple(given)


class Transition(nn.Module):
  """Narrows every map by a 1x1 convolution.

  Attributes:
    widths: channels of each map afterwards.
    axis_name: see MSDNet.
    dtype: see MSDNet.
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
