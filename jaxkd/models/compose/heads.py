"""Heads: classifiers on the features of an intermediate stage."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.losses._resize import adaptive_average_pool
from jaxkd.models.layers import batch_norm, convolution, he_normal, linear
from jaxkd.types import Array, Output


class LinearExit(nn.Module):
  """Mean over the image and a linear layer.

  Features: "pooled" and "hint", both the mean (B, C).

  Attributes:
    num_classes: number of classes.
    axis_name: not used; here because every head takes it.
    dtype: of the computation; parameters stay float32.

  Parameters: "classifier" {"kernel", "bias"}.
  """

  num_classes: int
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, features: Array, train: bool = False) -> Output:
    """(B, H, W, C) or (B, C) -> logits (B, num_classes)."""
    pooled = _pool(features)
    logits = linear(self.num_classes, pooled.shape[-1], self.dtype, "classifier")(pooled)
    return Output(logits, {"hint": pooled, "pooled": pooled})


class ConvExit(nn.Module):
  """Two 3x3 convolutions of stride 2 with batch normalisation and ReLU, mean, linear layer.

  Features: "pooled" and "hint", both the mean (B, width).

  Attributes:
    num_classes: number of classes.
    width: channels of both convolutions.
    axis_name: device axis over which batch statistics are shared; None keeps them per device.
    dtype: of the computation; parameters and statistics stay float32.

  Parameters: "conv1", "bn1", "conv2", "bn2", "classifier".

  Source: Huang et al., "Multi-Scale Dense Networks for Resource Efficient Image Classification",
  ICLR 2018: the classifiers of their networks for CIFAR, which have width 128.
  """

  num_classes: int
  width: int = 128
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, features: Array, train: bool = False) -> Output:
    """(B, H, W, C) -> logits (B, num_classes)."""
    _check_map(self, features)
    x = features
    for i in (1, 2):
      x = convolution(self.width, 3, self.dtype, stride=2, name=f"conv{i}")(x)
      x = _norm_relu(self, x, f"bn{i}", train)
    pooled = _pool(x)
    logits = linear(self.num_classes, pooled.shape[-1], self.dtype, "classifier")(pooled)
    return Output(logits, {"hint": pooled, "pooled": pooled})


class ProjectedExit(nn.Module):
  """Average pooling to the deepest map's size, a 1x1 convolution to its channels, mean, linear.

  Features: "hint", the convolution's output after batch normalisation and ReLU, (B, *size, width),
  and "pooled", its mean (B, width).

  Attributes:
    num_classes: number of classes.
    width: channels of the deepest map.
    size: (height, width) of the deepest map.
    axis_name: device axis over which batch statistics are shared; None keeps them per device.
    dtype: of the computation; parameters and statistics stay float32.

  Parameters: "conv", "bn", "classifier".

  Source: a plain form of "be your own teacher" by this project, with 1x1 convolutions to match the
  channels. The published heads are BottleneckExit and AttentionExit.
  """

  num_classes: int
  width: int
  size: tuple[int, int]
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, features: Array, train: bool = False) -> Output:
    """(B, H, W, C) -> logits (B, num_classes)."""
    _check_map(self, features)
    x = adaptive_average_pool(features, *self.size)
    hint = _pointwise(self, x, self.width, "conv", "bn", train)
    pooled = _pool(hint)
    logits = linear(self.num_classes, pooled.shape[-1], self.dtype, "classifier")(pooled)
    return Output(logits, {"hint": hint, "pooled": pooled})


class BottleneckExit(nn.Module):
  """A bottleneck whose middle convolution reduces the map to the deepest one's size, mean, linear.

  Convolutions 1x1 to width / 4 channels, k x k of stride k, 1x1 to `width`, each with batch
  normalisation and ReLU. Sizes that k does not divide are padded with zeros and rounded up.

  Features: "hint", the last convolution's output, of the deepest map's shape, and "pooled", its
  mean (B, width).

  Attributes:
    num_classes: number of classes.
    width: channels of the deepest map.
    stride: k for rows and for columns: the ratio of the stage's map size to the deepest map's.
    axis_name: device axis over which batch statistics are shared; None keeps them per device.
    dtype: of the computation; parameters and statistics stay float32.

  Parameters: "conv1".."conv3", "bn1".."bn3", "classifier".

  Source: Zhang et al., "Be Your Own Teacher", ICCV 2019, as in luanyunteng's re-implementation (the
  authors published another head, AttentionExit), k = 8, 4, 2 on a ResNet's first three stages. Its
  convolutions have biases, which the normalisation after them cancels; they are left out here. Its
  feature term compares means over the image, "pooled".
  """

  num_classes: int
  width: int
  stride: tuple[int, int]
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, features: Array, train: bool = False) -> Output:
    """(B, H, W, C) -> logits (B, num_classes)."""
    _check_map(self, features)
    narrow = max(1, self.width // 4)
    x = _pointwise(self, features, narrow, "conv1", "bn1", train)
    x = nn.Conv(
      narrow,
      self.stride,
      self.stride,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=he_normal,
      name="conv2",
    )(x)
    x = _norm_relu(self, x, "bn2", train)
    hint = _pointwise(self, x, self.width, "conv3", "bn3", train)
    pooled = _pool(hint)
    logits = linear(self.num_classes, pooled.shape[-1], self.dtype, "classifier")(pooled)
    return Output(logits, {"hint": hint, "pooled": pooled})


class AttentionExit(nn.Module):
  """The map times an attention of its own size, separable convolutions, mean, linear.

  The attention is a separable convolution of stride 2, bilinearly resized to the map's size, and a
  sigmoid. `halvings` separable convolutions of stride 2 follow, whose channels double up to
  `width`. One separable convolution here is twice the sequence depthwise 3x3 (the first with the
  stride), 1x1, batch normalisation, ReLU.

  Features: "pooled", the mean (B, width), and with `adapt` "hint", a linear layer of it (B, width).

  Attributes:
    num_classes: number of classes.
    width: channels of the deepest map.
    halvings: number of times the map's size is halved (rounded up) to reach the deepest map's. With
      0 the mean of the weighted map is classified directly.
    adapt: whether the head has a hint.
    axis_name: device axis over which batch statistics are shared; None keeps them per device.
    dtype: of the computation; parameters and statistics stay float32.

  Parameters: "attention", "separable1", ... {"depthwise1", "pointwise1", "bn1", "depthwise2",
  "pointwise2", "bn2"}, "classifier", "adapter".

  Source: Zhang et al., "Self-Distillation: Towards Efficient and Compact Neural Networks", TPAMI
  2021, as in the authors' code, pytorch-self-distillation-final; its hint layers are in its
  training script, where the deepest head has no feature term. Its bilinear interpolation doubles an
  even map, as here; it fails on odd maps.
  """

  num_classes: int
  width: int
  halvings: int
  adapt: bool = True
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, features: Array, train: bool = False) -> Output:
    """(B, H, W, C) -> logits (B, num_classes)."""
    _check_map(self, features)
    channels = features.shape[-1]
    common = {"axis_name": self.axis_name, "dtype": self.dtype}
    attention = SeparablePair(channels, name="attention", **common)(features, train)
    attention = jax.image.resize(attention, features.shape, "bilinear")
    x = nn.sigmoid(attention).astype(features.dtype) * features
    for i in range(1, self.halvings + 1):
      width = max(1, self.width // 2 ** (self.halvings - i))
      x = SeparablePair(width, name=f"separable{i}", **common)(x, train)
    pooled = _pool(x)
    outputs = {"pooled": pooled}
    if self.adapt:
      outputs["hint"] = linear(self.width, pooled.shape[-1], self.dtype, "adapter")(pooled)
    return Output(
      linear(self.num_classes, pooled.shape[-1], self.dtype, "classifier")(pooled), outputs
    )


class SeparablePair(nn.Module):
  """Two separable convolutions, the first of stride 2; see AttentionExit."""

  width: int
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """(B, H, W, C) -> (B, H / 2, W / 2, width), rounded up."""
    channels = x.shape[-1]
    for i, stride, width in ((1, 2, channels), (2, 1, self.width)):
      x = nn.Conv(
        channels,
        (3, 3),
        (stride, stride),
        padding=1,  # as in PyTorch; Flax's "SAME" shifts strided convolutions
        feature_group_count=channels,
        use_bias=False,
        dtype=self.dtype,
        kernel_init=he_normal,
        name=f"depthwise{i}",
      )(x)
      x = _pointwise(self, x, width, f"pointwise{i}", f"bn{i}", train)
    return x


def _pointwise(module: Any, x: Array, width: int, conv: str, norm: str, train: bool) -> Array:
  """A 1x1 convolution, batch normalisation, ReLU."""
  x = convolution(width, 1, module.dtype, name=conv)(x)
  return _norm_relu(module, x, norm, train)


def _norm_relu(module: Any, x: Array, name: str, train: bool) -> Array:
  norm = batch_norm(module.axis_name, module.dtype, name)
  return nn.relu(norm(x, use_running_average=not train))


def _pool(features: Array) -> Array:
  return features if features.ndim == 2 else jnp.mean(features, axis=(1, 2))


def _check_map(module: nn.Module, features: Array) -> None:
  if features.ndim != 4:
    raise ConfigError(f"{type(module).__name__}: features {features.shape} are not (B, H, W, C)")
