"""Models by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from flax import linen as nn

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.models.msdnet import MSDNet
from jaxkd.models.resnet import CifarResNet


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


# "x4" counts from the stem of the 16-16-32-64 family as RepDistiller does: the stem only doubles.
_MODELS: Mapping[str, partial[Any]] = MappingProxyType(
  {f"resnet{depth}": _resnet(depth, 16, 16, 32, 64) for depth in (8, 14, 20, 32, 44, 56, 110)}
  | {f"resnet{depth}x4": _resnet(depth, 32, 64, 128, 256) for depth in (8, 14, 32, 38)}
  # Narrow ones for images of a few pixels, named by the width of their stem.
  | {
    f"resnet{depth}_w{width}": _resnet(depth, width, width, 2 * width, 4 * width)
    for depth, width in ((8, 4), (8, 8), (14, 8), (20, 8))
  }
  | {
    "msdnet": _msdnet(blocks=5, base=4, step=2, channels=16, growth_rate=6, exit_width=128),
    "msdnet_small": _msdnet(blocks=4, base=2, step=1, channels=4, growth_rate=2, exit_width=32),
  }
)


def names() -> tuple[str, ...]:
  """The names `create` knows.

  >>> names()[:4]
  ('resnet8', 'resnet14', 'resnet20', 'resnet32')
  """
  return tuple(_MODELS)


def create(name: str, *, num_classes: int, **options: Any) -> nn.Module:
  """A model by name; its variables are made by its `init`.

  Args:
    name: one of `names()`. resnet8 ... resnet110 have widths 16-16-32-64 (stem, three stages),
      resnet8x4 ... resnet38x4 32-64-128-256, resnet8_w4 and its like w-w-2w-4w. msdnet has five
      exits and a size of its authors for CIFAR; msdnet_small has four, for 28x28 images on a
      CPU (1.5 million multiplications there; resnet8_w4 has 0.6).
    num_classes: classes, at least 1.
    **options: the model's other fields: `axis_name`, `dtype`.

  Returns:
    A linen module whose `__call__(images, train)` returns an Output, or one Output per exit. It
    takes images of any channel count from 4x4; it checks the size when it meets one.

  Raises:
    ConfigError: for an unknown name or option, or a number of classes below 1.

  >>> create("resnet8_w4", num_classes=10).widths
  (4, 4, 8, 16)
  >>> create("resnet9", num_classes=10)  # doctest: +ELLIPSIS
  Traceback (most recent call last):
  jaxkd.errors.ConfigError: unknown model 'resnet9': did you mean 'resnet8' or ...
  """
  if name not in _MODELS:
    raise unknown_name("model", name, _MODELS)
  if num_classes < 1:
    raise ConfigError(f"num_classes must be at least 1, not {num_classes}")
  model = _MODELS[name]
  kind: Any = model.func
  fields = {field.name for field in dataclasses.fields(kind)}
  known = fields - {"parent", "name", "num_classes"} - set(model.keywords)
  for option in options:
    if option not in known:
      raise unknown_name(f"option of model {name!r}:", option, known)
  return model(num_classes=num_classes, **options)
