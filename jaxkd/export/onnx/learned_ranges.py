"""Ranges of activations that a student learned in training, for its int8 model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from onnx import numpy_helper
from onnxruntime import quantization

from jaxkd.errors import ConfigError
from jaxkd.models.compose.quantized import input_ranges
from jaxkd.types import Network

# Largest difference of two unit vectors that are the same channel of a kernel.
_SAME = 1e-3


def overrides(model: Any, student: Network) -> dict[str, list[dict[str, Any]]]:
  """Return the quantisation of the inputs of layers, as onnxruntime's `TensorQuantOverrides`.

  Layers are found by their kernels, since onnxruntime renames what it fuses; it multiplies the
  channels of a kernel by the scales of a batch normalisation, and each is compared in direction.

  Args:
    model: the float model, prepared for quantisation.
    student: the network that was trained: a `jaxkd.models.Quantized` with its variables.

  Returns:
    Name of a tensor -> scale and zero point of signed 8-bit integers.

  Raises:
    ConfigError: for a layer whose kernel no operation of the model has.
  """
  layers = list(_layers(student))
  found: dict[str, list[dict[str, Any]]] = {}
  for tensor, kernel in _operations(model):
    for path, directions, low, high in layers:
      if directions.shape == kernel.shape and _same(directions, kernel):
        layers.remove((path, directions, low, high))
        found[tensor] = [_quantisation(low, high)]
        break
  if layers:
    raise ConfigError(f"{layers[0][0]} has no operation with its kernel in the ONNX model")
  return found


def _layers(student: Network) -> Iterator[tuple[str, np.ndarray, float, float]]:
  """Yield path, directions of the kernel's channels and range of every layer."""
  parameters: Mapping[str, Any] = flatten_dict(
    dict(student.variables["params"]["network"]), sep="/"
  )
  for path, low, high in input_ranges(student.variables):
    kernel = np.asarray(parameters[f"{path}/kernel"], np.float32)
    yield path, _directions(kernel.reshape(-1, kernel.shape[-1])), low, high


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
