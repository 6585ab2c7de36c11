"""The layers of a Flax module whose weights PyTorch stores in another layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax.ad_checkpoint import checkpoint_name

Path = tuple[str, ...]
_MARK = "input of "
# Path of a kernel of a transposed convolution -> its `transpose_kernel`.
Transposed = Mapping[Path, bool]


class Traced(NamedTuple):
  """What one trace of a model's `init` finds.

  Attributes:
    shapes: path -> shape of every variable.
    transposed: the transposed convolutions.
    flattened: path -> (H, W, C) or (L, C), the linear layers whose input is a map flattened in
      Flax's order of axes. PyTorch flattens (C, H, W), Flax (H, W, C): the same number of features
      in another order, which no shape tells. A map that is transposed to (B, C, H, W) before is in
      PyTorch's order. (B, L, C) is a map if it comes from a one-dimensional convolution, not from
      tokens, whose order is that of PyTorch.
  """

  shapes: dict[Path, jax.ShapeDtypeStruct]
  transposed: Transposed
  flattened: dict[Path, tuple[int, ...]]


def traced(model: nn.Module, images: jax.ShapeDtypeStruct) -> Traced:
  """Trace the `init` of a model for its variables and the layers that PyTorch stores otherwise."""
  transposed: dict[Path, bool] = {}

  def record(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    module = context.module
    if isinstance(module, nn.ConvTranspose) and module.scope is not None:
      transposed[("params", *module.scope.path, "kernel")] = module.transpose_kernel
    if isinstance(module, nn.Dense) and module.scope is not None and args:
      name = _MARK + "/".join(module.scope.path)
      args = (checkpoint_name(args[0], name), *args[1:])
    return call(*args, **kwargs)

  with nn.intercept_methods(record):
    program, shapes = jax.make_jaxpr(model.init, return_shape=True)(jax.random.key(0), images)
  flattened: dict[Path, tuple[int, ...]] = {}
  _search(program.jaxpr, flattened)
  return Traced(flatten_dict(shapes), transposed, flattened)


def _search(program: Any, found: dict[Path, tuple[int, ...]]) -> None:
  """Add the marked inputs of a program, and of the programs in it, that are flattened maps."""
  producers = {variable: equation for equation in program.eqns for variable in equation.outvars}
  for equation in program.eqns:
    name = equation.params.get("name")
    if equation.primitive.name == "name" and str(name).startswith(_MARK):
      shape = _flattened(equation.invars[0], producers)
      if shape is not None:
        found[tuple(str(name).removeprefix(_MARK).split("/"))] = shape
    for inner in _programs(equation):
      _search(inner, found)


def _programs(equation: Any) -> list[Any]:
  """The programs that an equation runs: of a call, a loop or a rematerialised part."""
  values = (getattr(value, "jaxpr", value) for value in equation.params.values())
  return [value for value in values if hasattr(value, "eqns")]


def _flattened(variable: Any, producers: Mapping[Any, Any]) -> tuple[int, ...] | None:
  """The shape of the map that a variable is, flattened; None if it is no such map."""
  for equation in _origins(variable, producers):
    if equation.primitive.name != "reshape":
      continue
    source = equation.invars[0]
    batch, *shape = source.aval.shape
    if len(shape) < 2 or equation.outvars[0].aval.shape != (batch, math.prod(shape)):
      continue
    if shape[-1] == 1 or math.prod(shape[:-1]) == 1:
      continue
    if len(shape) == 2 and not _is_convolved(source, producers):
      continue
    order = (0, len(shape), *range(1, len(shape)))
    origins = _origins(source, producers)
    if not any(origin.params.get("permutation") == order for origin in origins):
      return tuple(shape)
  return None


def _is_convolved(variable: Any, producers: Mapping[Any, Any]) -> bool:
  """Check whether (B, L, C) comes from a convolution, with no linear layer or attention after it.

  The layers of a transformer are matrix products, its tokens may come from any convolution.
  """
  known: set[Any] = set()
  waiting, convolved = [variable], False
  while waiting:
    equation = producers.get(waiting.pop())
    if equation is None or id(equation) in known:
      continue
    known.add(id(equation))
    if _multiplies(equation):
      return False
    if equation.primitive.name == "conv_general_dilated":
      convolved |= equation.outvars[0].aval.ndim == 3
    else:
      waiting += [v for v in equation.invars if not hasattr(v, "val")]
  return convolved


def _multiplies(equation: Any) -> bool:
  inner = (inside for program in _programs(equation) for inside in program.eqns)
  return equation.primitive.name == "dot_general" or any(map(_multiplies, inner))


def _origins(variable: Any, producers: Mapping[Any, Any]) -> list[Any]:
  """The equations that a variable comes from by operations that keep its shape."""
  found: list[Any] = []
  waiting = [variable]
  while waiting:
    equation = producers.get(waiting.pop())
    if equation is None or any(equation is known for known in found):
      continue
    found.append(equation)
    shape = equation.outvars[0].aval.shape
    waiting += [
      v for v in equation.invars if not hasattr(v, "val") and v.aval.shape == shape and shape
    ]
  return found


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
