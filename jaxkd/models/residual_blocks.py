"""The blocks of residual networks, and chains of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flax import linen as nn

from jaxkd.models.layers import batch_norm, convolution
from jaxkd.models.staged import TorchNames
from jaxkd.types import Array

# What PyTorch's residual networks call their modules, torchvision's and RepDistiller's.
TORCH_NAMES: TorchNames = (
  (r"conv1", "stem_conv"),
  (r"bn1", "stem_bn"),
  (r"fc|linear", "classifier"),
  (r"layer(\d)\.(\d+)\.(conv|bn)(\d)", r"stage\1_\2/\3\4"),
  (r"layer(\d)\.(\d+)\.(?:downsample|shortcut)\.0", r"stage\1_\2/downsample_conv"),
  (r"layer(\d)\.(\d+)\.(?:downsample|shortcut)\.1", r"stage\1_\2/downsample_bn"),
)


class BasicBlock(nn.Module):
  """conv-BN-ReLU-conv-BN plus shortcut, up to but not including the last ReLU.

  Attributes:
    width: output channels.
    stride: of the first convolution and of the shortcut.
    project: whether the shortcut is a 1x1 convolution and BN instead of the input itself.
    dropout: as in CifarResNet.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.
  """

  width: int
  stride: int = 1
  project: bool = False
  dropout: float = 0.0
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """(B, H, W, C) -> (B, H / stride, W / stride, width), rounded up."""

    def norm(name: str, y: Array) -> Array:
      return batch_norm(self.axis_name, self.dtype, name)(y, use_running_average=not train)

    y = convolution(self.width, 3, self.dtype, self.stride, name="conv1")(x)
    y = nn.relu(norm("bn1", y))
    y = nn.Dropout(self.dropout, deterministic=not train)(y)
    y = norm("bn2", convolution(self.width, 3, self.dtype, name="conv2")(y))
    if self.project:
      x = convolution(self.width, 1, self.dtype, self.stride, name="downsample_conv")(x)
      x = norm("downsample_bn", x)
    return y + x


class Bottleneck(nn.Module):
  """1x1-3x3-1x1 convolutions, each with BN, plus shortcut, up to but not including the last ReLU.

  Attributes:
    width: output channels, a multiple of 4; the 3x3 convolution has a fourth of them.
    stride: of the 3x3 convolution and of the shortcut.
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

    inner = self.width // 4
    y = nn.relu(norm("bn1", convolution(inner, 1, self.dtype, name="conv1")(x)))
    y = convolution(inner, 3, self.dtype, self.stride, name="conv2")(y)
    y = nn.relu(norm("bn2", y))
    y = norm("bn3", convolution(self.width, 1, self.dtype, name="conv3")(y))
    if self.project:
      x = convolution(self.width, 1, self.dtype, self.stride, name="downsample_conv")(x)
      x = norm("downsample_bn", x)
    return y + x


def chain(
  block: type[BasicBlock] | type[Bottleneck],
  count: int,
  *,
  before: int,
  width: int,
  stride: int,
  **common: Any,
) -> list[nn.Module]:
  """The `count` blocks of a stage: the first changes size and width, where they change.

  Args:
    block: which kind.
    count: how many.
    before: channels of what the first block reads.
    width: channels of what every block gives.
    stride: of the first block.
    **common: the blocks' other fields.
  """
  first = block(width, stride, project=stride != 1 or width != before, **common)
  return [first, *(block(width, **common) for _ in range(count - 1))]


def run_chain(blocks: Sequence[nn.Module], x: Array, train: bool) -> Array:
  """The blocks one after the other, with a ReLU after each but the last."""
  *earlier, last = blocks
  for block in earlier:
    x = nn.relu(block(x, train))
  return last(x, train)
