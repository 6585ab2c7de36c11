"""Models of Hugging Face's transformers by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from jaxkd.models.catalog_timm import VIT_SIZES, vit


def _transformer(size: str, token: bool, head: bool = False) -> partial[Any]:
  return vit(
    size,
    norm_eps=1e-12,
    distillation_token=token,
    distillation_head=head,
    library="transformers",
  )


# ViTForImageClassification, DeiTForImageClassification (a distillation token, one classifier) and
# DeiTForImageClassificationWithTeacher (two classifiers).
MODELS: Mapping[str, partial[Any]] = MappingProxyType(
  {f"hf_vit_{size}": _transformer(size, False) for size in VIT_SIZES}
  | {f"hf_deit_{size}": _transformer(size, True) for size in VIT_SIZES}
  | {f"hf_deit_{size}_distilled": _transformer(size, True, True) for size in VIT_SIZES}
)
