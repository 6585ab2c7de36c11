"""The layers of a Flax module whose weights PyTorch stores in another layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

Path = tuple[str, ...]
# Path of a kernel of a transposed convolution -> its `transpose_kernel`.
Transposed = Mapping[Path, bool]


def traced(
  model: nn.Module, images: jax.ShapeDtypeStruct
) -> tuple[dict[Path, jax.ShapeDtypeStruct], Transposed]:
  """The shapes of a model's variables by path, and its transposed convolutions."""
  transposed: dict[Path, bool] = {}

  def record(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    module = context.module
    if isinstance(module, nn.ConvTranspose) and module.scope is not None:
      transposed[("params", *module.scope.path, "kernel")] = module.transpose_kernel
    return call(*args, **kwargs)

  with nn.intercept_methods(record):
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  return flatten_dict(shapes), transposed


def in_layout(path: Path, value: np.ndarray, transposed: Transposed) -> np.ndarray:
  """PyTorch's (outputs, inputs, ...) as Flax's (..., inputs, outputs).

  A transposed convolution has (inputs, outputs, ...) in PyTorch. In Flax it is (..., inputs,
  outputs), not mirrored, or (..., outputs, inputs) with `transpose_kernel`, which is the gradient
  of a convolution as in PyTorch.
  """
  if path[-1] != "kernel":
    return value
  if path not in transposed:
    return np.moveaxis(value, (1, 0), (-2, -1))
  if transposed[path]:
    return np.moveaxis(value, (1, 0), (-2, -1))
  return np.flip(np.moveaxis(value, (0, 1), (-2, -1)), tuple(range(value.ndim - 2)))
