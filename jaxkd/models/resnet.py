"""Residual networks for small images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from jaxkd.models.layers import batch_norm, convolution, linear
from jaxkd.models.residual_blocks import TORCH_NAMES, BasicBlock, chain, run_chain
from jaxkd.models.staged import StagedModel, TorchNames
from jaxkd.types import Array

STAGES = ("stem", "stage1", "stage2", "stage3", "pooled")


class CifarResNet(StagedModel):
  """A residual network of 6 x `blocks` + 2 layers for small images, of any size from 4x4.

  A 3x3 stem, three stages of `blocks` basic blocks (the second and third halve the image), a mean
  over the image, a linear classifier. Variables are named after PyTorch's by a plain rule:
  conv1, bn1 -> stem_conv, stem_bn; layer1.0.conv1 -> stage1_0/conv1; downsample.0, .1 ->
  downsample_conv, downsample_bn; fc -> classifier.

  Features, for images (B, H, W, C), sizes rounded up:
    stem (B, H, W, widths[0]), stage1 (B, H, W, widths[1]), stage2 (B, H/2, W/2, widths[2]),
    stage3 (B, H/4, W/4, widths[3]), all after ReLU, and pooled (B, widths[3]); with a stem that
    strides, H and W are half the image's.
  Preactivations: the same without the last ReLU; pooled has none.

  Attributes:
    blocks: basic blocks per stage; the depth is 6 * blocks + 2.
    widths: channels of the stem and of the three stages.
    num_classes: classes.
    stem_stride: 2 halves the image at the stem, for a fourth of the cost.
    dropout: share of the values between a block's convolutions that training drops.
    axis_name: the device axis over which batch normalisation shares its statistics in training;
      None keeps them per device.
    dtype: what convolutions and the classifier compute in, and what logits and features come out
      in; None follows the images. Parameters and running statistics stay float32.

  Source: He et al., CVPR 2016, section 4.2, as RepDistiller's models/resnet.py has it: 1x1
  convolutions where the shape changes (the paper pads with zeros), a stem narrower than stage 1
  in the x4 family, no weight decay exemptions. Initial values are PyTorch's. A stem that strides is
  this project's; dropout is where wide residual networks have it.
  """

  smallest: ClassVar[int] = 4  # two stages halve the image, and each output must cover a pixel
  torch_names: ClassVar[TorchNames] = TORCH_NAMES

  blocks: int
  widths: tuple[int, int, int, int]
  num_classes: int
  stem_stride: int = 1
  dropout: float = 0.0
  axis_name: str | None = None
  dtype: Any = None

  def setup(self) -> None:
    """Names the layers; each makes its variables when it first runs."""
    self.stem_conv = convolution(self.widths[0], 3, self.dtype, self.stem_stride)
    self.stem_bn = batch_norm(self.axis_name, self.dtype)
    self.stage1 = self._blocks(1)
    self.stage2 = self._blocks(2)
    self.stage3 = self._blocks(3)
    self.classifier = linear(self.num_classes, self.widths[3], self.dtype)

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    return dict(zip(STAGES, (*self.widths, self.widths[3]), strict=True))

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """One stage's feature, and its preactivation; see StagedModel."""
    if stage == "pooled":
      return jnp.mean(x, axis=(1, 2)), {}
    preactivation = self._preactivation(stage, x, train)
    return nn.relu(preactivation), {stage: preactivation}

  def classify(self, pooled: Array) -> Array:
    """(B, C) -> logits (B, classes)."""
    return self.classifier(pooled)

  def _blocks(self, stage: int) -> list[nn.Module]:
    return chain(
      BasicBlock,
      self.blocks,
      before=self.widths[stage - 1],
      width=self.widths[stage],
      stride=1 if stage == 1 else 2,
      dropout=self.dropout,
      axis_name=self.axis_name,
      dtype=self.dtype,
    )

  def _preactivation(self, stage: str, x: Array, train: bool) -> Array:
    if stage == "stem":
      return self.stem_bn(self.stem_conv(x), use_running_average=not train)
    blocks = {"stage1": self.stage1, "stage2": self.stage2, "stage3": self.stage3}[stage]
    return run_chain(blocks, x, train)
