"""Models with the sizes of timm's, by name, and the preprocessing of timm's published weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from jaxkd.models.zoo.class_token_vit import ClassTokenTransformer
from jaxkd.models.zoo.convnext import ConvNeXt
from jaxkd.models.zoo.mobilenet_v3 import TimmMobileNetV3
from jaxkd.models.zoo.resnet import ResNet
from jaxkd.models.zoo.resnet_d import ResNetD

# Name of a size -> width of a token, heads; all have 12 blocks and patches of 16x16.
VIT_SIZES: Mapping[str, tuple[int, int]] = MappingProxyType(
  {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
)
_CONVNEXT_SIZES = {
  "atto": ((2, 2, 6, 2), 40),
  "femto": ((2, 2, 6, 2), 48),
  "pico": ((2, 2, 6, 2), 64),
  "nano": ((2, 2, 8, 2), 80),
  "tiny": ((3, 3, 9, 3), 96),
}


def vit(size: str, **options: Any) -> partial[Any]:
  """A vision transformer of a size of `VIT_SIZES`, without its number of classes."""
  width, heads = VIT_SIZES[size]
  return partial(ClassTokenTransformer, patch=16, width=width, heads=heads, depth=12, **options)


def _resnet_d(*blocks: int) -> partial[Any]:
  return partial(ResNetD, blocks=blocks, width=64, bottleneck=True, imagenet=True)


def _convnext(size: str) -> partial[Any]:
  depths, width = _CONVNEXT_SIZES[size]
  widths = (width, 2 * width, 4 * width, 8 * width)
  return partial(ConvNeXt, depths=depths, widths=widths, library="timm")


def _timm_vit(size: str, distilled: bool) -> partial[Any]:
  return vit(
    size,
    norm_eps=1e-6,
    distillation_token=distilled,
    distillation_head=distilled,
    library="timm",
  )


MODELS: Mapping[str, partial[Any]] = MappingProxyType(
  {
    "timm_resnet18": partial(
      ResNet, blocks=(2, 2, 2, 2), width=64, bottleneck=False, imagenet=True
    ),
    "timm_resnet26d": _resnet_d(2, 2, 2, 2),
    "timm_resnet50d": _resnet_d(3, 4, 6, 3),
  }
  | {f"timm_vit_{size}_patch16_224": _timm_vit(size, False) for size in VIT_SIZES}
  | {f"timm_deit_{size}_distilled_patch16_224": _timm_vit(size, True) for size in VIT_SIZES}
  | {f"timm_convnext_{size}": _convnext(size) for size in _CONVNEXT_SIZES}
  | {
    f"timm_mobilenetv3_small_{round(100 * width):03}": partial(
      TimmMobileNetV3, size="small", width=width
    )
    for width in (0.5, 0.75, 1.0)
  }
  | {"timm_mobilenetv3_large_100": partial(TimmMobileNetV3, size="large", width=1.0)}
)
