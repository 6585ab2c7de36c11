"""Module names in timm's PyTorch code, and the paths of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxkd.models.staged import TorchNames


def in_block(rest: str, group: int = 1) -> Callable[[Any], str]:
  r"""Function match -> "block_N/REST", where PyTorch counts blocks from 0 and we from 1.

  Args:
    rest: the path within the block, with references to groups as in `re.Match.expand`.
    group: the group of the pattern that holds PyTorch's number.

  >>> import re
  >>> in_block(r"mlp_\2")(re.fullmatch(r"blocks\.(\d+)\.(in|out)", "blocks.11.in"))
  'block_12/mlp_in'
  """
  return lambda match: f"block_{int(match[group]) + 1}/{match.expand(rest)}"


TIMM_VIT_NAMES: TorchNames = (
  (r"cls_token|dist_token|pos_embed", lambda match: f"embedding/{match[0]}"),
  (r"patch_embed\.proj", "embedding/patches"),
  (r"blocks\.(\d+)\.norm1", in_block("attention_norm")),
  (r"blocks\.(\d+)\.attn\.qkv", in_block("attention/qkv")),
  (r"blocks\.(\d+)\.attn\.proj", in_block("attention/out")),
  (r"blocks\.(\d+)\.norm2", in_block("mlp_norm")),
  (r"blocks\.(\d+)\.mlp\.fc1", in_block("mlp_in")),
  (r"blocks\.(\d+)\.mlp\.fc2", in_block("mlp_out")),
  (r"norm", "final_norm"),
  (r"head", "classifier"),
  (r"head_dist", "distillation_classifier"),
)

TIMM_RESNET_D_NAMES: TorchNames = (
  (r"conv1\.0", "stem_conv1"),
  (r"conv1\.1", "stem_bn1"),
  (r"conv1\.3", "stem_conv2"),
  (r"conv1\.4", "stem_bn2"),
  (r"conv1\.6", "stem_conv3"),
  (r"bn1", "stem_bn"),
  (r"layer(\d)\.(\d+)\.(conv|bn)(\d)", r"stage\1_\2/\3\4"),
  (r"layer(\d)\.(\d+)\.downsample\.1", r"stage\1_\2/downsample_conv"),
  (r"layer(\d)\.(\d+)\.downsample\.2", r"stage\1_\2/downsample_bn"),
  (r"fc", "classifier"),
)


def _convnext(layer: str) -> Callable[[Any], str]:
  """Function match of stage and block -> path of a layer; timm counts stages from 0."""
  return lambda match: f"stage{int(match[1]) + 1}_{match[2]}/{layer}"


TIMM_CONVNEXT_NAMES: TorchNames = (
  (r"stem\.0", "stem_conv"),
  (r"stem\.1", "stem_norm"),
  (r"stages\.(\d)\.downsample\.0", lambda match: f"stage{int(match[1]) + 1}_norm"),
  (r"stages\.(\d)\.downsample\.1", lambda match: f"stage{int(match[1]) + 1}_conv"),
  (r"stages\.(\d)\.blocks\.(\d+)\.gamma", _convnext("layer_scale")),
  (r"stages\.(\d)\.blocks\.(\d+)\.conv_dw", _convnext("conv")),
  (r"stages\.(\d)\.blocks\.(\d+)\.norm", _convnext("norm")),
  (r"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc1", _convnext("mlp_in")),
  (r"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc2", _convnext("mlp_out")),
  (r"head\.norm", "final_norm"),
  (r"head\.fc", "classifier"),
)


def timm_mobilenet_v3_names(groups: Sequence[int]) -> TorchNames:
  """Names of a MobileNetV3 with so many blocks in each group; ours are numbered from 1."""
  places = [f"{group}.{i}" for group, count in enumerate(groups) for i in range(count)]
  numbers = {place: number for number, place in enumerate(places, 1)}

  def layer(rest: str) -> Callable[[Any], str | None]:
    def path(match: Any) -> str | None:
      number = numbers.get(match[1])
      return None if number is None else f"block_{number}/{match.expand(rest)}"

    return path

  first, block, last = r"blocks\.(0\.\d)\.", r"blocks\.(\d\.\d)\.", rf"blocks\.{len(groups)}\.0\."
  return (
    (r"conv_stem", "stem_conv"),
    (r"bn1", "stem_bn"),
    (rf"{last}conv", "last_conv"),
    (rf"{last}bn1", "last_bn"),
    # The first group has no expansion.
    (rf"{first}bn1", layer("depthwise_bn")),
    (rf"{first}conv_pw", layer("project_conv")),
    (rf"{first}bn2", layer("project_bn")),
    (rf"{block}conv_pw", layer("expand_conv")),
    (rf"{block}bn1", layer("expand_bn")),
    (rf"{block}conv_dw", layer("depthwise_conv")),
    (rf"{block}bn2", layer("depthwise_bn")),
    (rf"{block}se\.conv_(reduce|expand)", layer(r"squeeze_\2")),
    (rf"{block}conv_pwl", layer("project_conv")),
    (rf"{block}bn3", layer("project_bn")),
    (r"conv_head", "hidden"),
    (r"classifier", "classifier"),
  )
