"""VGG networks with batch normalisation for small images."""

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

_STAGES = ("stem", "stage1", "stage2", "stage3", "stage4")


def _torch_name(match: Any) -> str:
  # PyTorch numbers what runs one after the other: convolution, norm, ReLU, convolution, norm.
  stage, index = int(match[1]), int(match[2])
  layer = "bn" if index % 3 else "conv"
  return f"{_STAGES[stage]}/{layer}{index // 3 + 1}"


class VGG(StagedModel):
  """A chain of 3x3 convolutions with BN in five blocks, for small images of any size from 8x8.

  A 2x2 max-pool opens stages 1 to 3, and stage 4 where the map that reaches it still has 8 rows
  and columns, as it has for images of 64x64 and not of 32x32. A mean over the image and one linear
  classifier end it. Variables are named after PyTorch's by a plain rule: block0, block1, ... ->
  stem, stage1, ...; in it 0, 1, 3, 4, ... -> conv1, bn1, conv2, bn2, ...

  Features, for images (B, H, W, C), sizes rounded down:
    stem (B, H, W, widths[0]), stage1 (B, H/2, W/2, widths[1]), stage2 (B, H/4, W/4, widths[2]),
    stage3 (B, H/8, W/8, widths[3]), stage4 (the same or half of it, widths[4]), all after ReLU and
    before the max-pool, and pooled (B, widths[4]).
  Preactivations: the same without the last ReLU; pooled has none.

  Attributes:
    depths: convolutions per block.
    widths: channels per block.
    num_classes: classes.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.

  Raises:
    ConfigError: when constructed, for another number of blocks, or one without a convolution.

  Source: Simonyan and Zisserman, ICLR 2015, as RepDistiller's models/vgg.py has it: one linear
  layer in place of three, convolutions with bias, each followed by BN. That code asks the image,
  not the map, whether it pools before stage 4 (64 rows exactly). Initial values are that code's:
  convolutions normal with variance 2 / (k * k * width), the classifier normal with standard
  deviation 0.01, biases zero.
  """

  smallest: ClassVar[int] = 8  # three stages halve the image, and each output must cover a pixel
  torch_names: ClassVar[TorchNames] = (
    (r"block(\d)\.(\d+)", _torch_name),
    (r"classifier", "classifier"),
  )

  depths: tuple[int, ...]
  widths: tuple[int, ...]
  num_classes: int
  axis_name: str | None = None
  dtype: Any = None

  def __post_init__(self) -> None:
    """Checks the fields, so that a mistake shows where it is made."""
    for field in ("depths", "widths"):
      numbers = getattr(self, field)
      if len(numbers) != len(_STAGES) or min(numbers) < 1:
        raise ConfigError(f"{field}={numbers!r}: expected {len(_STAGES)} numbers of at least 1")
    super().__post_init__()

  def setup(self) -> None:
    """Names the layers; each makes its variables when it first runs."""
    common = {"axis_name": self.axis_name, "dtype": self.dtype}
    blocks = zip(_STAGES, self.depths, self.widths, strict=True)
    for stage, depth, width in blocks:
      setattr(self, stage, _Convolutions(depth, width, **common))
    self.classifier = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=normal(0.01))

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    return dict(zip((*_STAGES, "pooled"), (*self.widths, self.widths[-1]), strict=True))

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """One stage's feature, and its preactivation; see StagedModel."""
    if stage == "pooled":
      return jnp.mean(x, axis=(1, 2)), {}
    if stage in ("stage1", "stage2", "stage3") or (stage == "stage4" and min(x.shape[1:3]) >= 8):
      x = nn.max_pool(x, (2, 2), (2, 2))
    preactivation = getattr(self, stage)(x, train)
    return nn.relu(preactivation), {stage: preactivation}

  def classify(self, pooled: Array) -> Array:
    """(B, C) -> logits (B, classes)."""
    return self.classifier(pooled)


class _Convolutions(nn.Module):
  """3x3 convolutions, BN after each, ReLU between them but not after the last."""

  depth: int
  width: int
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """(B, H, W, C) -> (B, H, W, width)."""
    for i in range(1, self.depth + 1):
      x = convolution(self.width, 3, self.dtype, bias=True, name=f"conv{i}")(x)
      norm = batch_norm(self.axis_name, self.dtype, f"bn{i}")
      x = norm(x, use_running_average=not train)
      if i < self.depth:
        x = nn.relu(x)
    return x
