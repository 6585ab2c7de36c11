"""Copies of modules that share nothing with the original."""

from __future__ import annotations

from typing import TypeVar

from flax import linen as nn

Module = TypeVar("Module", bound=nn.Module)


def separate(module: Module) -> Module:
  """A copy that shares no variables with the original, nor do the modules it holds.

  linen lets modules that hold one and the same module share its variables; a plain `clone` still
  holds it.
  """
  return module.clone(_deep_clone=True, _reset_names=True)
