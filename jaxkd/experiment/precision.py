"""Element types in which a lowered step computes its convolutions, losses and results."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import export

_CONVOLUTION = re.compile(r"stablehlo\.convolution\(.* -> tensor<(?:\d+x)*([a-z]\w*)>")
_SCORES = re.compile(
  r"stablehlo\.(?:exponential|exponential_minus_one|log|log_plus_one)\b"
  r".* : tensor<(?:\d+x){0,2}([a-z]\w*)>"
)
_SUM = re.compile(r"stablehlo\.reduce\(.* -> tensor<([a-z]\w*)>")
_RAISED = re.compile(r"stablehlo\.convert .* : \(tensor<(bf16|f16)>\) -> tensor<f32>")


class Precision(NamedTuple):
  """The element types in which a step computes.

  Attributes:
    convolutions: element type -> number of convolutions that compute in it, over all platforms.
    losses: element type -> number of operations of losses and metrics, likewise.
    low_results: paths of floating-point results that are not float32.
  """

  convolutions: Mapping[str, int]
  losses: Mapping[str, int]
  low_results: tuple[str, ...]


def precision(step: export.Exported) -> Precision:
  """Return the element types in which an exported step computes."""
  text = step.mlir_module()
  losses: collections.Counter[str] = collections.Counter()
  for pattern in (_SCORES, _SUM, _RAISED):
    losses.update(kind for kind in pattern.findall(text) if "f" in kind)  # no integers
  results = jax.tree.unflatten(step.out_tree, step.out_avals)
  return Precision(
    convolutions=dict(collections.Counter(_CONVOLUTION.findall(text))),
    losses=dict(losses),
    low_results=tuple(
      jax.tree_util.keystr(path)
      for path, leaf in jax.tree.leaves_with_path(results)
      if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype != jnp.float32
    ),
  )
