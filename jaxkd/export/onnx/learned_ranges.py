"""Ranges of activations that a student learned in training, for its int8 model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from onnx import numpy_helper
from onnxruntime import quantization

from jaxkd.errors import ConfigError
from jaxkd.models.compose.quantized import input_ranges, inside
from jaxkd.models.compose.rounding import rounded_kernels
from jaxkd.types import Network

# Largest difference of two unit vectors that are the same channel of a kernel.
_SAME = 1e-3


def overrides(model: Any, student: Network) -> dict[str, list[dict[str, Any]]]:
  """Return the quantisation of the inputs of layers, as onnxruntime's `TensorQuantOverrides`.

  Layers are found by their kernels, since onnxruntime renames what it fuses; it multiplies the
  channels of a kernel by the scales of a batch normalisation, and each is compared in direction.

  Args:
    model: the float model, prepared for quantisation.
    student: the network that was trained, which is or has a `jaxkd.models.Quantized`.

  Returns:
    Name of a tensor -> scale and zero point of signed 8-bit integers.

  Raises:
    ConfigError: for a layer whose kernel no operation of the model has.
  """
  kernels = _kernels(student)
  ranges = {path: (low, high) for path, low, high in input_ranges(student.variables)}
  found: dict[str, list[dict[str, Any]]] = {}
  for tensor, kernel in _operations(model):
    path = next((path for path in ranges if _same(kernels[path], kernel)), None)
    if path is not None:
      found[tensor] = [_quantisation(*ranges.pop(path))]
  if ranges:
    raise ConfigError(f"{min(ranges)} has no operation with its kernel in the ONNX model")
  return found


def _kernels(student: Network) -> dict[str, np.ndarray]:
  """Return the directions of the channels of every rounded kernel, by the path of its layer."""
  bits, *_ = {module.weight_bits for module in inside(student.module)}
  arrays = flatten_dict(dict(rounded_kernels(student.variables["params"], bits)), sep="/")
  found = {}
  for path, array in arrays.items():
    if path.endswith("/kernel"):
      kernel = np.asarray(array, np.float32)
      found[path.removesuffix("/kernel")] = _directions(kernel.reshape(-1, kernel.shape[-1]))
  return found


def _operations(model: Any) -> Iterator[tuple[str, np.ndarray]]:
  """Yield the input and the kernel's directions of every convolution and product."""
  constants = {x.name: x for x in model.graph.initializer}
  for node in model.graph.node:
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in constants:
      continue
    kernel = numpy_helper.to_array(constants[node.input[1]])
    if node.op_type == "Conv":
      kernel = kernel.transpose(*range(2, kernel.ndim), 1, 0)
    elif any(a.name == "transB" and a.i for a in node.attribute):
      kernel = kernel.T
    yield node.input[0], _directions(kernel.reshape(-1, kernel.shape[-1]))


def _directions(kernel: np.ndarray) -> np.ndarray:
  """Return the columns of a matrix with length 1; columns of zeros stay."""
  length = np.linalg.norm(kernel, axis=0)
  return kernel / np.where(length > 0, length, 1.0)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
  """Return whether all columns are parallel, apart from those that are zeros in one of them."""
  if a.shape != b.shape:
    return False
  signs = np.where((a * b).sum(0) < 0, -1.0, 1.0)
  both = a.any(0) & b.any(0)
  return bool(both.any() and np.abs(a * signs - b)[:, both].max() < _SAME)


def _quantisation(low: float, high: float) -> dict[str, Any]:
  """Return scale and zero point, as `jaxkd.models.compose.quantized.rounded` has them, signed."""
  scale = max(high - low, 1e-30) / 255
  zero = min(max(round(-low / scale), 0), 255) - 128
  return {
    "quant_type": quantization.QuantType.QInt8,
    "scale": np.array(scale, np.float32),
    "zero_point": np.array(zero, np.int8),
  }
