"""VGG networks with batch normalisation as in torchvision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import normal

from jaxkd.errors import ConfigError
from jaxkd.models.layers import batch_norm, convolution
from jaxkd.models.staged import StagedModel, TorchNames
from jaxkd.types import Array

_ROWS = 7  # of the map that the first linear layer reads


class ImageNetVGG(StagedModel):
  """A chain of 3x3 convolutions with BN in five stages and three linear layers, from 32x32.

  A 2x2 max-pool follows each stage, then an adaptive average pool to 7x7 (of images of 224x224 it
  changes nothing).

  Features, for images (B, H, W, C), sizes rounded down: stage1 (B, H, W, widths[0]) to stage5
  (B, H/16, W/16, widths[4]), after ReLU and before the max-pool; flattened (B, 49 * widths[4]), the
  7x7 map with the channels first, as in PyTorch; penultimate (B, hidden), after the second linear
  layer and ReLU. Preactivations: the stages before their last ReLU.

  Attributes:
    depths: number of convolutions of each stage.
    num_classes: number of classes.
    widths: channels of each stage.
    hidden: channels of the two hidden layers.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.

  Raises:
    ConfigError: at construction, unless there are five depths and widths of at least 1.

  Source: Simonyan and Zisserman, ICLR 2015, as in torchvision's vgg.py, without its dropout.
  Initial values are that code's: He's by fan-out, linear layers normal with deviation 0.01.
  """

  smallest: ClassVar[int] = 32

  depths: tuple[int, ...]
  num_classes: int
  widths: tuple[int, ...] = (64, 128, 256, 512, 512)
  hidden: int = 4096
  axis_name: str | None = None
  dtype: Any = None

  def __post_init__(self) -> None:
    """Check the fields at construction."""
    for field in ("depths", "widths"):
      numbers = getattr(self, field)
      if len(numbers) != 5 or min(numbers) < 1:
        raise ConfigError(f"{field}={numbers!r}: expected 5 numbers of at least 1")
    super().__post_init__()

  def setup(self) -> None:
    """Create the layers; their variables are created when they first run."""
    for k, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
      convs = [convolution(width, 3, self.dtype, bias=True) for _ in range(depth)]
      setattr(self, f"stage{k}_conv", convs)
      setattr(self, f"stage{k}_bn", [batch_norm(self.axis_name, self.dtype) for _ in range(depth)])
    self.hidden1, self.hidden2 = (
      nn.Dense(self.hidden, dtype=self.dtype, kernel_init=normal(0.01)) for _ in range(2)
    )
    self.classifier = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=normal(0.01))

  @property
  def vectors(self) -> tuple[str, ...]:
    """The stages whose features are (B, C)."""
    return ("flattened", "penultimate")

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    stages = {f"stage{k}": width for k, width in enumerate(self.widths, 1)}
    return {**stages, "flattened": _ROWS**2 * self.widths[-1], "penultimate": self.hidden}

  @property
  def torch_names(self) -> TorchNames:  # type: ignore[override]
    """Module names in torchvision, for `jaxkd.models.from_torch`."""
    paths: dict[int, str] = {}
    number = 0
    for k, depth in enumerate(self.depths, 1):
      for i in range(depth):
        paths[number], paths[number + 1] = f"stage{k}_conv_{i}", f"stage{k}_bn_{i}"
        number += 3  # the third is ReLU
      number += 1  # the max-pool
    return (
      (r"features\.(\d+)", lambda match: paths.get(int(match[1]))),
      (r"classifier\.0", "hidden1"),
      (r"classifier\.3", "hidden2"),
      (r"classifier\.6", "classifier"),
    )

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """The feature of one stage, and its preactivation; see StagedModel."""
    if stage == "penultimate":
      return nn.relu(self.hidden2(nn.relu(self.hidden1(x)))), {}
    if stage != "stage1":
      x = nn.max_pool(x, (2, 2), (2, 2))
    if stage == "flattened":
      x = _averaged(_averaged(x, 1), 2)
      return jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1), {}
    layers = zip(getattr(self, f"{stage}_conv"), getattr(self, f"{stage}_bn"), strict=True)
    preactivation = x
    for i, (conv, norm) in enumerate(layers):
      x = nn.relu(preactivation) if i else x
      preactivation = norm(conv(x), use_running_average=not train)
    return nn.relu(preactivation), {stage: preactivation}


def _averaged(x: Array, axis: int) -> Array:
  """PyTorch's adaptive average pool to 7 places of one axis."""
  size = x.shape[axis]
  if size == _ROWS:
    return x
  bounds = [(i * size // _ROWS, -(-(i + 1) * size // _ROWS)) for i in range(_ROWS)]
  parts = [jnp.take(x, jnp.arange(start, stop), axis).mean(axis) for start, stop in bounds]
  return jnp.stack(parts, axis)
