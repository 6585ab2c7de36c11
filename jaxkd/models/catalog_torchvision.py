"""Models of torchvision by name, and the preprocessing of their published weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from jaxkd.models.zoo.convnext import ConvNeXt
from jaxkd.models.zoo.densenet import DenseNet
from jaxkd.models.zoo.efficientnet import EfficientNet
from jaxkd.models.zoo.imagenet_mobilenet_v2 import ImageNetMobileNetV2
from jaxkd.models.zoo.imagenet_vgg import ImageNetVGG
from jaxkd.models.zoo.mobilenet_v3 import MobileNetV3
from jaxkd.models.zoo.resnet import ResNet


def _resnet(*blocks: int, bottleneck: bool, widen: int = 1) -> partial[ResNet]:
  return partial(ResNet, blocks=blocks, width=64, bottleneck=bottleneck, imagenet=True, widen=widen)


# Width, depth and image size of the published weights of EfficientNet.
_EFFICIENT = {
  "b0": (1.0, 1.0, 224),
  "b1": (1.0, 1.1, 240),
  "b2": (1.1, 1.2, 288),
  "b3": (1.2, 1.4, 300),
  "b4": (1.4, 1.8, 380),
  "b5": (1.6, 2.2, 456),
  "b6": (1.8, 2.6, 528),
  "b7": (2.0, 3.1, 600),
}

_FEW: dict[str, partial[Any]] = {
  "torchvision_resnet18": _resnet(2, 2, 2, 2, bottleneck=False),
  "torchvision_resnet34": _resnet(3, 4, 6, 3, bottleneck=False),
  "torchvision_resnet50": _resnet(3, 4, 6, 3, bottleneck=True),
  "torchvision_resnet101": _resnet(3, 4, 23, 3, bottleneck=True),
  "torchvision_resnet152": _resnet(3, 8, 36, 3, bottleneck=True),
  "torchvision_wide_resnet50_2": _resnet(3, 4, 6, 3, bottleneck=True, widen=2),
  "torchvision_wide_resnet101_2": _resnet(3, 4, 23, 3, bottleneck=True, widen=2),
  "torchvision_vgg11_bn": partial(ImageNetVGG, depths=(1, 1, 2, 2, 2)),
  "torchvision_vgg13_bn": partial(ImageNetVGG, depths=(2, 2, 2, 2, 2)),
  "torchvision_vgg16_bn": partial(ImageNetVGG, depths=(2, 2, 3, 3, 3)),
  "torchvision_vgg19_bn": partial(ImageNetVGG, depths=(2, 2, 4, 4, 4)),
  "torchvision_mobilenet_v2": partial(ImageNetMobileNetV2, width=1.0),
  "torchvision_mobilenet_v3_small": partial(MobileNetV3, size="small"),
  "torchvision_mobilenet_v3_large": partial(MobileNetV3, size="large"),
}

MODELS: Mapping[str, partial[Any]] = MappingProxyType(
  _FEW
  | {
    f"torchvision_convnext_{name}": partial(ConvNeXt, depths=depths, widths=widths)
    for name, depths, widths in (
      ("tiny", (3, 3, 9, 3), (96, 192, 384, 768)),
      ("small", (3, 3, 27, 3), (96, 192, 384, 768)),
      ("base", (3, 3, 27, 3), (128, 256, 512, 1024)),
      ("large", (3, 3, 27, 3), (192, 384, 768, 1536)),
    )
  }
  | {
    f"torchvision_efficientnet_{name}": partial(
      EfficientNet, width=width, depth=depth, loose=name in ("b5", "b6", "b7")
    )
    for name, (width, depth, _) in _EFFICIENT.items()
  }
  | {
    f"torchvision_densenet{name}": partial(DenseNet, growth=growth, depths=depths, stem=stem)
    for name, growth, depths, stem in (
      ("121", 32, (6, 12, 24, 16), 64),
      ("161", 48, (6, 12, 36, 24), 96),
      ("169", 32, (6, 12, 32, 32), 64),
      ("201", 32, (6, 12, 48, 32), 64),
    )
  }
)

# Rows and columns of the images of the published weights, where they are not 224.
SIZES: Mapping[str, int] = MappingProxyType(
  {f"torchvision_efficientnet_{name}": size for name, (_, _, size) in _EFFICIENT.items()}
)
