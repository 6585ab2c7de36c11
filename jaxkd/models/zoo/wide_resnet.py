"""Wide residual networks for small images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from jaxkd.models.layers import batch_norm, convolution, torch_uniform
from jaxkd.models.staged import StagedModel, TorchNames
from jaxkd.types import Array

_STAGES = ("stem", "stage1", "stage2", "stage3", "pooled")
_TORCH_NAMES: TorchNames = (
  (r"conv1", "stem_conv"),
  (r"bn1", "last_bn"),
  (r"fc", "classifier"),
  (r"block(\d)\.layer\.(\d+)\.(conv|bn)(\d)", r"stage\1_\2/\3\4"),
  (r"block(\d)\.layer\.(\d+)\.convShortcut", r"stage\1_\2/shortcut_conv"),
)


class WideResNet(StagedModel):
  """A wide residual network of 6 x `blocks` + 4 layers for small images, of any size from 4x4.

  A 3x3 stem, three stages of `blocks` pre-activation blocks (the second and third stage halve the
  image), BN and ReLU, a mean over the image, a linear classifier. Variables
  are named after PyTorch's modules: conv1 -> stem_conv; block1.layer.0.conv1 ->
  stage1_0/conv1; convShortcut -> shortcut_conv; bn1 -> last_bn; fc -> classifier.

  Features, for images (B, H, W, C), sizes rounded up:
    stem (B, H, W, widths[0]), stage1 (B, H, W, widths[1]), stage2 (B, H/2, W/2, widths[2]),
    stage3 (B, H/4, W/4, widths[3]), all of both signs: the stem's convolution and the residual sums
    without BN and ReLU; and pooled (B, widths[3]), after BN and ReLU.
  Preactivations: each feature after the BN at the start of the next stage ("pooled" for the last),
  so
    that the next stage returns it: `encode(..., to_stage="stage1")` has the preactivation of the
    stem, not of stage1, and `resume(..., "stage1")` starts with that of stage1. pooled has none.

  Attributes:
    blocks: blocks per stage; the depth is 6 * blocks + 4.
    widths: channels of the stem and of the three stages; 16, 16 k, 32 k, 64 k for a width of k.
    num_classes: number of classes.
    dropout: dropout rate between the two convolutions of a block.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.

  Source: Zagoruyko and Komodakis, BMVC 2016, as in RepDistiller's models/wrn.py. If a block changes
  the shape, its shortcut is a 1x1 convolution of the output of its first BN and ReLU; otherwise it
  is the unchanged input. Initial values are those of that code: convolutions normal with variance 2
  / (k * k * width), the classifier PyTorch's default with a bias of zero.
  """

  smallest: ClassVar[int] = 4  # two stages halve the image, and each output must cover a pixel
  signed_stages: ClassVar[tuple[str, ...]] = ("stem", "stage1", "stage2", "stage3")
  torch_names: ClassVar[TorchNames] = _TORCH_NAMES

  blocks: int
  widths: tuple[int, int, int, int]
  num_classes: int
  dropout: float = 0.0
  axis_name: str | None = None
  dtype: Any = None

  def setup(self) -> None:
    """Create the layers; their variables are created when they first run."""
    self.stem_conv = convolution(self.widths[0], 3, self.dtype)
    self.stage1 = self._blocks(1)
    self.stage2 = self._blocks(2)
    self.stage3 = self._blocks(3)
    self.last_bn = batch_norm(self.axis_name, self.dtype)
    self.classifier = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=torch_uniform)

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    return dict(zip(_STAGES, (*self.widths, self.widths[3]), strict=True))

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """The feature of one stage, and the preactivation of the previous one; see StagedModel."""
    if stage == "stem":
      return self.stem_conv(x), {}
    before = _STAGES[_STAGES.index(stage) - 1]
    if stage == "pooled":
      normalised = self.last_bn(x, use_running_average=not train)
      return jnp.mean(nn.relu(normalised), axis=(1, 2)), {before: normalised}
    first, *later = getattr(self, stage)
    x, normalised = first(x, train)
    for block in later:
      x, _ = block(x, train)
    return x, {before: normalised}

  def _blocks(self, stage: int) -> list[_Block]:
    common = {"dropout": self.dropout, "axis_name": self.axis_name, "dtype": self.dtype}
    width, before = self.widths[stage], self.widths[stage - 1]
    stride = 1 if stage == 1 else 2
    first = _Block(width, stride, project=stride != 1 or width != before, **common)
    return [first] + [_Block(width, **common) for _ in range(self.blocks - 1)]


class _Block(nn.Module):
  """BN-ReLU-conv-BN-ReLU-conv plus shortcut; fields as in BasicBlock."""

  width: int
  stride: int = 1
  project: bool = False
  dropout: float = 0.0
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> tuple[Array, Array]:
    """(B, H, W, C) -> the sum (B, H / stride, W / stride, width), and x after the first BN."""

    def norm(name: str, y: Array) -> Array:
      return batch_norm(self.axis_name, self.dtype, name)(y, use_running_average=not train)

    normalised = norm("bn1", x)
    opening = nn.relu(normalised)
    y = convolution(self.width, 3, self.dtype, self.stride, name="conv1")(opening)
    y = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(norm("bn2", y)))
    y = convolution(self.width, 3, self.dtype, name="conv2")(y)
    if self.project:
      x = convolution(self.width, 1, self.dtype, self.stride, name="shortcut_conv")(opening)
    return y + x, normalised
