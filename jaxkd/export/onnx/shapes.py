"""ONNX forms of JAX's primitives that move or select elements."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxkd.export.onnx.graph import Emit, Graph, NoOperatorError, Operand, Value, trimmed


def _broadcast(graph: Graph, eqn: Any, operands: Sequence[Operand]) -> list[Operand]:
  """Insert axes of size 1; the repetition is left to the operation that reads the result."""
  value = graph.value(operands[0])
  shape, axes = tuple(eqn.params["shape"]), eqn.params["broadcast_dimensions"]
  stored: list[Any] = [1] * len(shape)
  padded = (1,) * (len(value.shape) - len(value.stored)) + tuple(value.stored)
  for size, axis in zip(padded, axes, strict=True):
    stored[axis] = size
  if isinstance(operands[0], np.ndarray):
    value = graph.value(operands[0].reshape(trimmed(stored)))
    return [Value(value.name, shape, value.stored, value.dtype)]
  if trimmed(stored) == trimmed(value.stored):
    return [Value(value.name, shape, value.stored, value.dtype)]
  return [Value(graph.reshaped(value.name, stored), shape, tuple(stored), value.dtype)]


def _reshape(graph: Graph, eqn: Any, operands: Sequence[Operand]) -> list[str]:
  return [graph.reshaped(graph.whole(operands[0]), eqn.outvars[0].aval.shape)]


def _transpose(graph: Graph, eqn: Any, operands: Sequence[Operand]) -> list[str]:
  permutation = eqn.params["permutation"]
  return [graph.node("Transpose", graph.whole(operands[0]), perm=permutation)]


def _concatenate(graph: Graph, eqn: Any, operands: Sequence[Operand]) -> list[str]:
  names = [graph.whole(operand) for operand in operands]
  return [graph.node("Concat", *names, axis=eqn.params["dimension"])]


def _stack(graph: Graph, eqn: Any, operands: Sequence[Operand]) -> list[str]:
  axis = eqn.params["axis"]
  names = [
    graph.node("Unsqueeze", graph.whole(operand), graph.integers([axis])) for operand in operands
  ]
  return [graph.node("Concat", *names, axis=axis)]


def _unstack(graph: Graph, eqn: Any, operands: Sequence[Operand]) -> list[str]:
  axis, count = eqn.params["axis"], len(eqn.outvars)
  sizes, axes = graph.integers([1] * count), graph.integers([axis])
  parts = graph.split("Split", graph.whole(operands[0]), sizes, outputs=count, axis=axis)
  return [graph.node("Squeeze", part, axes) for part in parts]


def _tile(graph: Graph, eqn: Any, operands: Sequence[Operand]) -> list[str]:
  repeats = graph.integers(eqn.params["reps"])
  return [graph.node("Tile", graph.whole(operands[0]), repeats)]


def _split(graph: Graph, eqn: Any, operands: Sequence[Operand]) -> list[str]:
  sizes = graph.integers(eqn.params["sizes"])
  count, axis = len(eqn.params["sizes"]), eqn.params["axis"]
  return graph.split("Split", graph.whole(operands[0]), sizes, outputs=count, axis=axis)


def _slice(graph: Graph, eqn: Any, operands: Sequence[Operand]) -> list[str]:
  start, stop = eqn.params["start_indices"], eqn.params["limit_indices"]
  steps = eqn.params["strides"] or (1,) * len(start)
  return [
    _sliced(graph, graph.value(operands[0]).shape, graph.whole(operands[0]), start, stop, steps)
  ]


def _sliced(
  graph: Graph, shape: Any, name: str, start: Sequence[Any], stop: Sequence[Any], steps: Any
) -> str:
  kept = [
    axis
    for axis, (first, last, step) in enumerate(zip(start, stop, steps, strict=True))
    if not (first == 0 and last == shape[axis] and step == 1)
  ]
  parts = [[of[axis] for axis in kept] for of in (start, stop, steps)]
  if not all(isinstance(n, int) for n in itertools.chain(*parts)):
    raise NoOperatorError("a slice of the batch")
  starts, stops, strides = (graph.integers(part) for part in parts)
  return graph.node("Slice", name, starts, stops, graph.integers(kept), strides) if kept else name


def _dynamic_slice(graph: Graph, eqn: Any, operands: Sequence[Operand]) -> list[str]:
  x, *start = operands
  known = [int(index) for index in start if isinstance(index, np.ndarray)]
  if len(known) < len(start):
    raise NoOperatorError("the operation 'dynamic_slice' at positions that depend on the input")
  shape, sizes = graph.value(x).shape, eqn.params["slice_sizes"]
  first = [
    0 if n == size else min(max(index, 0), n - size)
    for index, n, size in zip(known, shape, sizes, strict=True)
  ]
  last = [i + size for i, size in zip(first, sizes, strict=True)]
  return [_sliced(graph, shape, graph.whole(x), first, last, (1,) * len(first))]


def _pad(graph: Graph, eqn: Any, operands: Sequence[Operand]) -> list[str]:
  low, high, inside = zip(*eqn.params["padding_config"], strict=True)
  if any(inside):
    raise NoOperatorError("the operation 'pad' between elements")
  # Negative sizes cut, as they do in ONNX.
  sizes = graph.integers([*low, *high])
  return [graph.node("Pad", graph.whole(operands[0]), sizes, graph.whole(operands[1]))]


def _gather(graph: Graph, eqn: Any, operands: Sequence[Operand]) -> list[str]:
  """One part at a known position (a slice), or rows of a table (an embedding)."""
  numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
  if isinstance(operands[1], np.ndarray) and operands[1].ndim == 1:
    shape = graph.value(operands[0]).shape
    start = [0] * len(shape)
    for axis, index in zip(numbers.start_index_map, operands[1].tolist(), strict=True):
      start[axis] = min(max(index, 0), shape[axis] - sizes[axis])
    stop = [n if i == 0 else i + n for i, n in zip(start, sizes, strict=True)]
    name = _sliced(graph, shape, graph.whole(operands[0]), start, stop, (1,) * len(shape))
    return [graph.reshaped(name, eqn.outvars[0].aval.shape)]
  table, indices = (graph.value(operand) for operand in operands)
  axis, *others = numbers.start_index_map
  rank = len(indices.shape) - 1  # number of axes that the positions make, in place of `axis`
  made = range(axis, axis + rank)
  along = (
    not others
    and not numbers.operand_batching_dims
    and numbers.collapsed_slice_dims == (axis,)
    and all(size == (1 if i == axis else table.shape[i]) for i, size in enumerate(sizes))
    and not set(made) & set(numbers.offset_dims)
  )
  if not along:
    raise NoOperatorError("the operation 'gather' of other parts than rows")
  positions = graph.node("Squeeze", graph.whole(operands[1]), graph.integers([-1]))
  return [graph.node("Gather", graph.whole(operands[0]), positions, axis=axis)]


SHAPES: dict[str, Emit] = {
  "broadcast_in_dim": _broadcast,
  "concatenate": _concatenate,
  "dynamic_slice": _dynamic_slice,
  "expand_dims": _reshape,
  "gather": _gather,
  "pad": _pad,
  "reshape": _reshape,
  "slice": _slice,
  "split": _split,
  "squeeze": _reshape,
  "stack": _stack,
  "tile": _tile,
  "transpose": _transpose,
  "unstack": _unstack,
}
