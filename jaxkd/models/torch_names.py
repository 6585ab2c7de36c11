"""From the names of PyTorch's modules to the paths of ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from jaxkd.models.staged import TorchNames


def module_path(name: str, torch_names: TorchNames) -> str | None:
  r"""The path of our module that stands for a PyTorch module; None if no pattern takes the name.

  Args:
    name: of the PyTorch module: a state dict's entry without its last part.
    torch_names: a model's patterns, see StagedModel; the first that takes the whole name counts.

  >>> module_path("layer1.0.conv2", ((r"layer(\d)\.(\d+)\.conv(\d)", r"stage\1_\2/conv\3"),))
  'stage1_0/conv2'
  """
  for pattern, path in torch_names:
    if match := re.fullmatch(pattern, name):
      return match.expand(path) if isinstance(path, str) else path(match)
  return None


def below(part: str, torch_names: TorchNames) -> TorchNames:
  """The same names for a network that is the part `part` of a larger one."""

  def nested(path: str | Callable[[Any], str]) -> Callable[[Any], str]:
    def nested_path(match: re.Match[str]) -> str:
      return f"{part}/{match.expand(path) if isinstance(path, str) else path(match)}"

    return nested_path

  return tuple((pattern, nested(path)) for pattern, path in torch_names)
