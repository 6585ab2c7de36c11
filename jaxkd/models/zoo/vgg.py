"""VGG networks with batch normalisation for small images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from flax import linen as nn
from jax.nn.initializers import normal

from jaxkd.errors import ConfigError
from jaxkd.models.layers import batch_norm, convolution
from jaxkd.models.staged import RectifiedModel, TorchNames
from jaxkd.types import Array

_STAGES = ("stem", "stage1", "stage2", "stage3", "stage4")


def _torch_name(match: Any) -> str:
  # PyTorch numbers the modules in order: convolution, norm, ReLU, convolution, norm.
  stage, index = int(match[1]), int(match[2])
  layer = "bn" if index % 3 else "conv"
  return f"{_STAGES[stage]}/{layer}{index // 3 + 1}"


class VGG(RectifiedModel):
  """A chain of 3x3 convolutions with BN in five blocks, for small images of any size from 8x8.

  Stages 1 to 3 start with a 2x2 max-pool, and so does stage 4 if its input has at least 8 rows and
  columns (so for images of 64x64, not for 32x32). The mean over the image and one linear classifier
  follow. Variables are named after PyTorch's modules: block0, block1, ... ->
  stem, stage1, ...; inside, 0, 1, 3, 4, ... -> conv1, bn1, conv2, bn2, ...

  Features, for images (B, H, W, C), sizes rounded down:
    stem (B, H, W, widths[0]), stage1 (B, H/2, W/2, widths[1]), stage2 (B, H/4, W/4, widths[2]),
    stage3 (B, H/8, W/8, widths[3]), stage4 (the same or half that size, widths[4]), all after ReLU
    and before the max-pool, and pooled (B, widths[4]).
  Preactivations: the same before the last ReLU; pooled has none.

  Attributes:
    depths: number of convolutions of each block.
    widths: channels of each block.
    num_classes: number of classes.
    axis_name: as in CifarResNet.
    dtype: as in CifarResNet.

  Raises:
    ConfigError: at construction, for another number of blocks, or one without a convolution.

  Source: Simonyan and Zisserman, ICLR 2015, as in RepDistiller's models/vgg.py: one linear layer in
  place of three, convolutions with bias, each followed by BN. That code decides on the pool before
  stage 4 by the image (64 rows exactly), not by the map. Initial values are those of that code:
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
    """Check the fields at construction."""
    for field in ("depths", "widths"):
      numbers = getattr(self, field)
      if len(numbers) != len(_STAGES) or min(numbers) < 1:
        raise ConfigError(f"{field}={numbers!r}: expected {len(_STAGES)} numbers of at least 1")
    super().__post_init__()

  def setup(self) -> None:
    """Create the layers; their variables are created when they first run."""
    common = {"axis_name": self.axis_name, "dtype": self.dtype}
    blocks = zip(_STAGES, self.depths, self.widths, strict=True)
    for stage, depth, width in blocks:
      setattr(self, stage, _Convolutions(depth, width, **common))
    self.classifier = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=normal(0.01))

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    return dict(zip((*_STAGES, "pooled"), (*self.widths, self.widths[-1]), strict=True))

  def preactivation(self, stage: str, x: Array, train: bool) -> Array:
    """The output of a stage before its last ReLU; see RectifiedModel."""
    if stage in ("stage1", "stage2", "stage3") or (stage == "stage4" and min(x.shape[1:3]) >= 8):
      x = nn.max_pool(x, (2, 2), (2, 2))
    return getattr(self, stage)(x, train)


class _Convolutions(nn.Module):
  """3x3 convolutions, each followed by BN, with a ReLU between them but not after the last."""

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
