"""Residual networks for small images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.models.layers import batch_norm, check_images, convolution, linear
from jaxkd.types import Array, Output

STAGES = ("stem", "stage1", "stage2", "stage3", "pooled")
_SMALLEST = 4  # two stages halve the image, and each output must cover a pixel


class CifarResNet(nn.Module):
  """A residual network of 6 x `blocks` + 2 layers for small images, of any size from 4x4.

  A 3x3 stem, three stages of `blocks` basic blocks (the second and third halve the image), a mean
  over the image, a linear classifier. Variables are named after PyTorch's by a plain rule:
  conv1, bn1 -> stem_conv, stem_bn; layer1.0.conv1 -> stage1_0/conv1; downsample.0, .1 ->
  downsample_conv, downsample_bn; fc -> classifier.

  Features, for images (B, H, W, C), sizes rounded up:
    stem (B, H, W, widths[0]), stage1 (B, H, W, widths[1]), stage2 (B, H/2, W/2, widths[2]),
    stage3 (B, H/4, W/4, widths[3]), all after ReLU, and pooled (B, widths[3]).
  Preactivations: the same without the last ReLU; pooled has none.

  Attributes:
    blocks: basic blocks per stage; the depth is 6 * blocks + 2.
    widths: channels of the stem and of the three stages.
    num_classes: classes.
    axis_name: the device axis over which batch normalisation shares its statistics in training;
      None keeps them per device.
    dtype: what convolutions and the classifier compute in, and what logits and features come out
      in; None follows the images. Parameters and running statistics stay float32.

  Source: He et al., CVPR 2016, section 4.2, as RepDistiller's models/resnet.py has it: 1x1
  convolutions where the shape changes (the paper pads with zeros), a stem narrower than stage 1
  in the x4 family, no weight decay exemptions. Initial values are PyTorch's.
  """

  blocks: int
  widths: tuple[int, int, int, int]
  num_classes: int
  axis_name: str | None = None
  dtype: Any = None

  def setup(self) -> None:
    """Names the layers; each makes its variables when it first runs."""
    self.stem_conv = convolution(self.widths[0], 3, self.dtype)
    self.stem_bn = batch_norm(self.axis_name, self.dtype)
    self.stage1 = self._blocks(1)
    self.stage2 = self._blocks(2)
    self.stage3 = self._blocks(3)
    self.classifier = linear(self.num_classes, self.widths[3], self.dtype)

  @property
  def stages(self) -> tuple[str, ...]:
    """The names of the features, shallow to deep."""
    return STAGES

  def __call__(self, images: Array, train: bool = False) -> Output:
    """Logits, features and preactivations of every stage.

    Args:
      images: (B, H, W, C), normalised, floating point, at least 4x4.
      train: whether batch normalisation uses the statistics of the batch, and updates its own.

    Raises:
      ConfigError: for images smaller than 4x4.
      ValueError: for images of another rank, or not of a floating dtype.
    """
    return self._classified(self.encode(images, train))

  def encode(self, images: Array, train: bool = False, to_stage: str = "pooled") -> Output:
    """Features up to and including `to_stage`, without logits; touches only those layers.

    Raises:
      ConfigError: for an unknown stage, and as `__call__`.
      ValueError: as `__call__`.
    """
    check_images(images, _SMALLEST)
    return self._through(STAGES[: _position(to_stage) + 1], images, train)

  def resume(
    self, features: Array, from_stage: str, train: bool = False, to_stage: str | None = None
  ) -> Output:
    """Continues from the features of `from_stage`; touches only the layers after it.

    Args:
      features: what `from_stage` gives, after ReLU: (B, H, W, C) with any H and W, or (B, C)
        for "pooled".
      from_stage: one of `stages`.
      train: as in `__call__`.
      to_stage: where to stop, without logits; None goes on to the logits.

    Returns:
      The features and preactivations of the stages after `from_stage`, and the logits.

    Raises:
      ConfigError: for an unknown stage, or a `to_stage` before `from_stage`.
      ValueError: for features of a rank or channel count that `from_stage` does not give.
    """
    start = _position(from_stage) + 1
    stop = len(STAGES) if to_stage is None else _position(to_stage) + 1
    if stop < start:
      raise ConfigError(f"resume: to_stage {to_stage!r} comes before from_stage {from_stage!r}")
    width = self.widths[min(start - 1, 3)]
    shape = f"(B, {width})" if from_stage == "pooled" else f"(B, H, W, {width})"
    if jnp.ndim(features) != shape.count(",") + 1 or jnp.shape(features)[-1] != width:
      raise ValueError(
        f"features to resume from {from_stage!r} must be {shape}, not {jnp.shape(features)}"
      )
    output = self._through(STAGES[start:stop], features, train)
    return output if to_stage is not None else self._classified(output, features)

  def _blocks(self, stage: int) -> list[BasicBlock]:
    common = {"axis_name": self.axis_name, "dtype": self.dtype}
    width, before = self.widths[stage], self.widths[stage - 1]
    stride = 1 if stage == 1 else 2
    first = BasicBlock(width, stride, project=stride != 1 or width != before, **common)
    return [first] + [BasicBlock(width, **common) for _ in range(self.blocks - 1)]

  def _through(self, stages: Iterable[str], x: Array, train: bool) -> Output:
    features: dict[str, Array] = {}
    preactivations: dict[str, Array] = {}
    for stage in stages:
      if stage == "pooled":
        x = jnp.mean(x, axis=(1, 2))
      else:
        preactivations[stage] = self._preactivation(stage, x, train)
        x = nn.relu(preactivations[stage])
      features[stage] = x
    return Output(features=features, preactivations=preactivations)

  def _preactivation(self, stage: str, x: Array, train: bool) -> Array:
    if stage == "stem":
      return self.stem_bn(self.stem_conv(x), use_running_average=not train)
    *earlier, last = {"stage1": self.stage1, "stage2": self.stage2, "stage3": self.stage3}[stage]
    for block in earlier:
      x = nn.relu(block(x, train))
    return last(x, train)

  def _classified(self, output: Output, pooled: Array | None = None) -> Output:
    pooled = output.features.get("pooled", pooled)
    return Output(self.classifier(pooled), output.features, output.preactivations)


class BasicBlock(nn.Module):
  """conv-BN-ReLU-conv-BN plus shortcut, up to but not including the last ReLU.

  Attributes:
    width: output channels.
    stride: of the first convolution and of the shortcut.
    project: whether the shortcut is a 1x1 convolution and BN instead of the input itself.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.
  """

  width: int
  stride: int = 1
  project: bool = False
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """(B, H, W, C) -> (B, H / stride, W / stride, width), rounded up."""

    def norm(name: str, y: Array) -> Array:
      return batch_norm(self.axis_name, self.dtype, name)(y, use_running_average=not train)

    y = convolution(self.width, 3, self.dtype, self.stride, name="conv1")(x)
    y = nn.relu(norm("bn1", y))
    y = norm("bn2", convolution(self.width, 3, self.dtype, name="conv2")(y))
    if self.project:
      x = convolution(self.width, 1, self.dtype, self.stride, name="downsample_conv")(x)
      x = norm("downsample_bn", x)
    return y + x


def _position(stage: str) -> int:
  if stage not in STAGES:
    raise unknown_name("stage", stage, STAGES)
  return STAGES.index(stage)
