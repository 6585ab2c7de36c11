"""Models by name, with their published sizes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from flax import linen as nn

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.models import catalog_timm, catalog_torchvision, catalog_transformers, imported
from jaxkd.models.zoo.class_token_vit import ClassTokenTransformer
from jaxkd.models.zoo.mlp import MLP
from jaxkd.models.zoo.mobilenet import MobileNetV1, MobileNetV2
from jaxkd.models.zoo.msdnet import MSDNet
from jaxkd.models.zoo.resnet import CifarResNet, ResNet
from jaxkd.models.zoo.shufflenet import ShuffleNetV1, ShuffleNetV2
from jaxkd.models.zoo.vgg import VGG
from jaxkd.models.zoo.vit import VisionTransformer
from jaxkd.models.zoo.wide_resnet import WideResNet
from jaxkd.types import Preprocessing


def _resnet(depth: int, stem: int, *stages: int) -> partial[CifarResNet]:
  first, second, third = stages
  widths = (stem, first, second, third)
  return partial(CifarResNet, blocks=(depth - 2) // 6, widths=widths)


def _msdnet(
  blocks: int, base: int, step: int, channels: int, growth_rate: int, exit_width: int
) -> partial[MSDNet]:
  factors = (1, 2, 4)
  return partial(
    MSDNet,
    blocks=blocks,
    base=base,
    step=step,
    step_mode="even",
    channels=channels,
    growth_rate=growth_rate,
    growth_factors=factors,
    bottleneck_factors=factors,
    scales=3,
    prune="max",
    bottleneck=True,
    reduction=0.5,
    exit_width=exit_width,
  )


def _vit(patch: int) -> partial[VisionTransformer]:
  return partial(VisionTransformer, patch=patch, width=64, heads=4, depths=(2, 2, 2))


def _deit(patch: int) -> partial[ClassTokenTransformer]:
  """A small transformer with a distillation token and two heads."""
  distilled = partial(ClassTokenTransformer, distillation_token=True, distillation_head=True)
  return partial(distilled, patch=patch, width=64, heads=4, depth=4, norm_eps=1e-6)


def _wrn(depth: int, factor: int) -> partial[WideResNet]:
  widths = (16, 16 * factor, 32 * factor, 64 * factor)
  return partial(WideResNet, blocks=(depth - 4) // 6, widths=widths)


def _vgg(*depths: int, width: int = 64) -> partial[VGG]:
  widths = tuple(width * factor for factor in (1, 2, 4, 8, 8))
  return partial(VGG, depths=depths, widths=widths)


def _imagenet_resnet(*blocks: int, bottleneck: bool) -> partial[ResNet]:
  return partial(ResNet, blocks=blocks, width=64, bottleneck=bottleneck, imagenet=True)


def _mobilenetv2(width: float) -> partial[MobileNetV2]:
  return partial(MobileNetV2, width=width, repeats=(1, 2, 3, 4, 3, 3, 1), last_width=1280)


def _shufflenetv2(*stages: int) -> partial[ShuffleNetV2]:
  first, second, third = stages
  widths = (first, second, third)
  return partial(ShuffleNetV2, stem=24, widths=widths, blocks=(4, 8, 4), last_width=1024)


# "x4" is RepDistiller's name: the stages have 4 times the widths of 16-16-32-64, the stem twice.
_OWN: Mapping[str, partial[Any]] = (
  {f"resnet{depth}": _resnet(depth, 16, 16, 32, 64) for depth in (8, 14, 20, 32, 44, 56, 110)}
  | {f"resnet{depth}x4": _resnet(depth, 32, 64, 128, 256) for depth in (8, 14, 32, 38)}
  # Narrow networks for small images, named by the width of their stem.
  | {
    f"resnet{depth}_w{width}": _resnet(depth, width, width, 2 * width, 4 * width)
    for depth, width in ((8, 4), (8, 8), (14, 8), (20, 8))
  }
  # The same with a stem of stride 2.
  | {
    f"resnet{depth}_w{width}_s2": partial(
      _resnet(depth, width, width, 2 * width, 4 * width), stem_stride=2
    )
    for depth, width in ((8, 4), (8, 8), (20, 8), (20, 16))
  }
  | {
    "msdnet": _msdnet(blocks=5, base=4, step=2, channels=16, growth_rate=6, exit_width=128),
    # The network of the authors of multi-exit distillation for CIFAR-100.
    "msdnet_11": partial(
      _msdnet(blocks=11, base=4, step=2, channels=16, growth_rate=6, exit_width=128),
      prune="min",
      bottleneck_factors=(4, 4, 4),
    ),
    "msdnet_small": _msdnet(blocks=4, base=2, step=1, channels=4, growth_rate=2, exit_width=32),
  }
  | {
    f"wrn_{depth}_{factor}": _wrn(depth, factor)
    for depth, factor in ((10, 1), (16, 1), (16, 2), (28, 4), (28, 10), (40, 1), (40, 2))
  }
  | {
    "vgg8": _vgg(1, 1, 1, 1, 1),
    "vgg11": _vgg(1, 1, 2, 2, 2),
    "vgg13": _vgg(2, 2, 2, 2, 2),
    "vgg16": _vgg(2, 2, 3, 3, 3),
    "vgg19": _vgg(2, 2, 4, 4, 4),
    "vgg8_w8": _vgg(1, 1, 1, 1, 1, width=8),
  }
  | {
    "cifar_resnet50": partial(
      ResNet, blocks=(3, 4, 6, 3), width=64, bottleneck=True, imagenet=False
    ),
    "imagenet_resnet18": _imagenet_resnet(2, 2, 2, 2, bottleneck=False),
    "imagenet_resnet34": _imagenet_resnet(3, 4, 6, 3, bottleneck=False),
    "imagenet_resnet50": _imagenet_resnet(3, 4, 6, 3, bottleneck=True),
  }
  | {
    "imagenet_mobilenetv1": partial(
      MobileNetV1, stem=32, widths=(64, 128, 256, 512, 1024), blocks=(2, 2, 6, 2)
    )
  }
  | {"mobilenetv2": _mobilenetv2(0.5), "mobilenetv2_x1": _mobilenetv2(1)}
  | {
    "shufflenetv1": partial(
      ShuffleNetV1, stem=24, widths=(240, 480, 960), blocks=(4, 8, 4), groups=3
    )
  }
  | {
    "shufflenetv2": _shufflenetv2(116, 232, 464),
    "shufflenetv2_x0.5": _shufflenetv2(48, 96, 192),
    "shufflenetv2_x1.5": _shufflenetv2(176, 352, 704),
  }
  | {
    "mlp": partial(MLP, widths=(256, 256)),
    "vit_tiny": _vit(patch=4),
    "vit_tiny_p2": _vit(patch=2),
    "deit_mini_p2": _deit(patch=2),
    "deit_mini_p4": _deit(patch=4),
    **catalog_torchvision.MODELS,
  }
)
_MODELS: Mapping[str, partial[Any]] = MappingProxyType(
  {**_OWN, **catalog_timm.MODELS, **catalog_transformers.MODELS}
)


def names() -> tuple[str, ...]:
  """The names that `create` accepts, those of `register` last; import paths are more.

  >>> names()[:4]
  ('resnet8', 'resnet14', 'resnet20', 'resnet32')
  """
  return (*_MODELS, *imported.REGISTERED)


def register(name: str, make: Callable[..., Any]) -> None:
  """Add a model under a name, for configs, `create` and bundles.

  A name may be registered twice, as when a config file is loaded twice: the later model is used.

  Args:
    name: letters, digits, "_", "-" and "."; the value of `student.model` in a config.
    make: function that is called with `num_classes`, and with `dtype`, `axis_name` and `dropout`
      where its signature accepts them. It returns a linen module, an NNX module, or for a trained
      teacher a Network.

  Raises:
    ConfigError: for an invalid name, the name of a model of this package, or no callable.
  """
  if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
    raise ConfigError(f"register: name={name!r}: expected letters, digits, '_', '-' and '.'")
  if name in _MODELS:
    raise ConfigError(f"register: name={name!r}: there is a model of that name in jaxkd.models")
  if not callable(make):
    raise ConfigError(f"register: {name!r}: make={make!r}: expected a callable")
  imported.REGISTERED[name] = make


def check_name(field: str, name: str) -> None:
  """Raise a ConfigError unless a model's name, or its import path, exists.

  Args:
    field: config field, for errors.
    name: one of `names()`, or a path, which is imported.
  """
  if imported.is_path(name):
    imported.find(f"{field}={name!r}", name)
  elif name not in names():
    raise unknown_model(name)


def unknown_model(name: str) -> ConfigError:
  """The error of a name that is not in the registry."""
  return ConfigError(f"{unknown_name('model', name, names())}; or {imported.PATH}")


# torchvision's preprocessing for ImageNet, and that of most vision transformers.
_IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (224, 224))
_HALF = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (224, 224))


def published_preprocessing(name: str) -> Preprocessing | None:
  """The preprocessing of a model's published weights; None if there is no convention.

  >>> published_preprocessing("imagenet_resnet18").image_size
  (224, 224)
  """
  if name.startswith(("timm_vit_", "hf_vit_")):
    return _HALF
  if size := catalog_torchvision.SIZES.get(name):
    return dataclasses.replace(_IMAGENET, image_size=(size, size))
  published = ("imagenet_", "torchvision_", "timm_", "hf_")
  return _IMAGENET if name.startswith(published) else None


def create(name: str, *, num_classes: int, **options: Any) -> nn.Module:
  """Create a model by name; its `init` creates the variables.

  Args:
    name: one of `names()`, or the import path of a callable, "PACKAGE.MODULE:CALLABLE" or
      "FILE.py:CALLABLE" (`jaxkd.models.imported`).
      resnet8 ... resnet110 have widths 16-16-32-64 (stem, three stages), resnet8x4 ... resnet38x4
      have 32-64-128-256, resnetD_wN has N-N-2N-4N; the suffix _s2 is a stem that halves the image.
      wrn_D_K has 16-16K-32K-64K. The vggs have 64-128-256-512-512, vgg8_w8 an eighth of it.
      cifar_resnet50 and imagenet_resnet18, 34 and 50 differ in their stems, see ResNet. mobilenetv2
      has width 0.5 and shufflenetv2 size 1, as in the tables for CIFAR. msdnet has five exits and
      one of its authors' sizes for CIFAR, msdnet_11 eleven exits; msdnet_small has four, for 28x28
      images on a CPU (1.5 million multiplications there; resnet8_w4 has 0.6). vit_tiny has patches
      of 4x4, vit_tiny_p2 of 2x2, which must divide the image. mlp has two hidden layers of 256.
      torchvision_*, timm_* and hf_* are models of torchvision, timm and Hugging Face's
      transformers, for images of one size (the vision transformers) or from 32x32.
    num_classes: number of classes, at least 1.
    **options: the model's other fields: `axis_name`, `dtype`, for some models `dropout`.

  Returns:
    A linen module whose `__call__(images, train)` returns an Output, or one Output per exit. It
    takes images of any channel count, of 8x8 or larger (many from 4x4, mobilenetv2 from 16x16,
    imagenet_mobilenetv1 from 32x32), and checks the size when it is called.

  Raises:
    ConfigError: for an unknown name or option, or a number of classes below 1; for a model of
      one's own, if it cannot be imported or called, or returns no module.

  >>> create("resnet8_w4", num_classes=10).widths
  (4, 4, 8, 16)
  >>> create("resnet9", num_classes=10)  # doctest: +ELLIPSIS
  Traceback (most recent call last):
  jaxkd.errors.ConfigError: unknown model 'resnet9': did you mean 'resnet8' or ...
  """
  if name not in _MODELS and not imported.is_own(name):
    raise unknown_model(name)
  if num_classes < 1:
    raise ConfigError(f"num_classes must be at least 1, not {num_classes}")
  if imported.is_own(name):
    return imported.create(f"model {name!r}", name, {"num_classes": num_classes, **options})
  model = _MODELS[name]
  kind: Any = model.func
  fields = {field.name for field in dataclasses.fields(kind)}
  known = fields - {"parent", "name", "num_classes"} - set(model.keywords)
  for option in options:
    if option not in known:
      raise unknown_name(f"option of model {name!r}:", option, known)
  return model(num_classes=num_classes, **options)
