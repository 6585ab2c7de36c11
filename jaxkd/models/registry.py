"""Models by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from flax import linen as nn

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.models.resnet import CifarResNet


def _resnet(depth: int, stem: int, *stages: int) -> partial[CifarResNet]:
  first, second, third = stages
  widths = (stem, first, second, third)
  return partial(CifarResNet, blocks=(depth - 2) // 6, widths=widths)


# "x4" counts from the stem of the 16-16-32-64 family as RepDistiller does: the stem only doubles.
_MODELS: Mapping[str, partial[CifarResNet]] = MappingProxyType(
  {f"resnet{depth}": _resnet(depth, 16, 16, 32, 64) for depth in (8, 14, 20, 32, 44, 56, 110)}
  | {f"resnet{depth}x4": _resnet(depth, 32, 64, 128, 256) for depth in (8, 14, 32, 38)}
  # Narrow ones for images of a few pixels, named by the width of their stem.
  | {
    f"resnet{depth}_w{width}": _resnet(depth, width, width, 2 * width, 4 * width)
    for depth, width in ((8, 4), (8, 8), (14, 8), (20, 8))
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
      resnet8x4 ... resnet38x4 32-64-128-256, resnet8_w4 and its like w-w-2w-4w.
    num_classes: classes, at least 1.
    **options: the model's other fields: `axis_name`, `dtype`.

  Returns:
    A linen module whose `__call__(images, train)` returns an Output. It takes images of any
    channel count from 4x4; it checks the size when it meets one.

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
  fields = {field.name for field in dataclasses.fields(CifarResNet)}
  known = fields - {"parent", "name", "num_classes"} - set(model.keywords)
  for option in options:
    if option not in known:
      raise unknown_name(f"option of model {name!r}:", option, known)
  return model(num_classes=num_classes, **options)
