"""ConvNeXt as in torchvision and in timm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.models.layers import convolution
from jaxkd.models.staged import StagedModel, TorchNames
from jaxkd.models.torch.names_timm import TIMM_CONVNEXT_NAMES
from jaxkd.types import Array

_STAGES = ("stem", "stage1", "stage2", "stage3", "stage4", "pooled")
_INITIAL = nn.initializers.normal(0.02)


def _stage(match: Any) -> int:
  # features.1, .3, .5, .7 are the stages, .2, .4, .6 the convolutions before them.
  return int(match[1]) // 2 + 1


def _block(layer: str) -> Any:
  return lambda match: f"stage{_stage(match)}_{match[2]}{layer}"


_TORCHVISION_NAMES: TorchNames = (
  (r"features\.0\.0", "stem_conv"),
  (r"features\.0\.1", "stem_norm"),
  (r"features\.([246])\.0", lambda match: f"stage{_stage(match)}_norm"),
  (r"features\.([246])\.1", lambda match: f"stage{_stage(match)}_conv"),
  (r"features\.([1357])\.(\d+)", _block("")),
  (r"features\.([1357])\.(\d+)\.block\.0", _block("/conv")),
  (r"features\.([1357])\.(\d+)\.block\.2", _block("/norm")),
  (r"features\.([1357])\.(\d+)\.block\.3", _block("/mlp_in")),
  (r"features\.([1357])\.(\d+)\.block\.5", _block("/mlp_out")),
  (r"classifier\.0", "final_norm"),
  (r"classifier\.2", "classifier"),
)
_NAMES: Mapping[str, TorchNames] = {"torchvision": _TORCHVISION_NAMES, "timm": TIMM_CONVNEXT_NAMES}


class ConvNeXt(StagedModel):
  """ConvNeXt: blocks of a 7x7 depthwise convolution and a perceptron, for images from 32x32.

  Features, for images (B, H, W, C), sizes rounded down: stem (B, H/4, W/4, widths[0]) after its
  LayerNorm; stage1 of the same shape, stage2 (B, H/8, W/8, widths[1]), stage3 (B, H/16, W/16,
  widths[2]), stage4 (B, H/32, W/32, widths[3]); pooled (B, widths[3]), the mean over the image and
  then LayerNorm. All have both signs; there are no preactivations.

  Attributes:
    depths: number of blocks of the four stages.
    widths: channels of the four stages.
    num_classes: number of classes.
    library: "torchvision" or "timm", which gives PyTorch's modules other names.
    axis_name: not used, since there are no batch statistics.
    dtype: as in CifarResNet.

  Raises:
    ConfigError: at construction, unless there are four depths and widths of at least 1; for
      another library.

  Source: Liu et al., "A ConvNet for the 2020s", CVPR 2022, as in torchvision's and timm's
  convnext.py, without stochastic depth. The perceptrons are linear layers; they take the weights of
  the 1x1 convolutions of timm's atto to nano as well. Initial values are those of both: normal with
  standard deviation 0.02 (truncated there at 100 deviations), scales of 1e-6.

  >>> ConvNeXt((2, 2, 6, 2), (40, 80, 160, 320), num_classes=10, library="timm").channels["stage4"]
  320
  """

  smallest: ClassVar[int] = 32
  signed_stages: ClassVar[tuple[str, ...]] = _STAGES

  depths: tuple[int, int, int, int]
  widths: tuple[int, int, int, int]
  num_classes: int
  library: str = "torchvision"
  axis_name: str | None = None
  dtype: Any = None

  def __post_init__(self) -> None:
    """Check the fields at construction."""
    for name in ("depths", "widths"):
      found = getattr(self, name)
      if len(found) != 4 or min(found) < 1:
        raise ConfigError(f"{name}={found!r}: expected 4 numbers of at least 1")
    if self.library not in _NAMES:
      raise ConfigError(f"library={self.library!r}: expected one of {', '.join(_NAMES)}")
    super().__post_init__()

  def setup(self) -> None:
    """Create the layers; their variables are created when they first run."""
    self.stem_conv = _reduction(self.widths[0], 4, self.dtype)
    self.stem_norm = _norm(self.dtype)
    self.stage2_norm, self.stage3_norm, self.stage4_norm = (_norm(self.dtype) for _ in range(3))
    self.stage2_conv, self.stage3_conv, self.stage4_conv = (
      _reduction(width, 2, self.dtype) for width in self.widths[1:]
    )
    self.stage1, self.stage2, self.stage3, self.stage4 = (
      [ScaledBlock(self.dtype) for _ in range(depth)] for depth in self.depths
    )
    self.final_norm = _norm(self.dtype)
    self.classifier = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=_INITIAL)

  @property
  def torch_names(self) -> TorchNames:  # type: ignore[override]
    """Module names of the library's PyTorch code, for `jaxkd.models.from_torch`."""
    return _NAMES[self.library]

  @property
  def channels(self) -> Mapping[str, int]:
    """Stage -> channels of its features, shallow to deep."""
    return dict(zip(_STAGES, (self.widths[0], *self.widths, self.widths[3]), strict=True))

  def run_stage(self, stage: str, x: Array, train: bool) -> tuple[Array, Mapping[str, Array]]:
    """The feature of one stage; see StagedModel."""
    if stage == "stem":
      return self.stem_norm(self.stem_conv(x)), {}
    if stage == "pooled":
      return self.final_norm(jnp.mean(x, axis=(1, 2))), {}
    if stage != "stage1":
      x = getattr(self, f"{stage}_conv")(getattr(self, f"{stage}_norm")(x))
    for block in getattr(self, stage):
      x = block(x)
    return x, {}


class ScaledBlock(nn.Module):
  """x + scale * perceptron(norm(depthwise convolution(x))), with exact GELU.

  Attributes:
    dtype: as in CifarResNet.
  """

  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """(B, H, W, C) -> the same shape."""
    width = x.shape[-1]
    conv = convolution(
      width, 7, self.dtype, name="conv", groups=width, bias=True, kernel_init=_INITIAL
    )
    y = _norm(self.dtype, "norm")(conv(x))
    y = nn.Dense(4 * width, dtype=self.dtype, kernel_init=_INITIAL, name="mlp_in")(y)
    y = nn.gelu(y, approximate=False)
    y = nn.Dense(width, dtype=self.dtype, kernel_init=_INITIAL, name="mlp_out")(y)
    scale = self.param("layer_scale", nn.initializers.constant(1e-6), (width,))
    return x + y * scale.astype(y.dtype)[None, None, None]


def _reduction(width: int, size: int, dtype: Any) -> nn.Conv:
  return nn.Conv(width, (size, size), (size, size), "VALID", dtype=dtype, kernel_init=_INITIAL)


def _norm(dtype: Any, name: str | None = None) -> nn.LayerNorm:
  # The fast variance cancels in float32 if |mean| is far above the deviation.
  return nn.LayerNorm(epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name)
