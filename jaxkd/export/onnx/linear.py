"""ONNX forms of convolutions, products of matrices, and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxkd.export.onnx.graph import Emit, Graph, NoOperatorError, Operand


def _permuted(graph: Graph, operand: Operand, order: Sequence[int]) -> str:
  """Return the name of an operand with its axes in another order; a constant is permuted here."""
  if list(order) == list(range(len(order))):
    return graph.whole(operand)
  if isinstance(operand, np.ndarray):
    return graph.constant(operand.transpose(order))
  return graph.node("Transpose", graph.whole(operand), perm=list(order))


def _inverse(order: Sequence[int]) -> list[int]:
  return [int(axis) for axis in np.argsort(order)]


def _convolution(graph: Graph, eqn: Any, operands: Sequence[Operand]) -> list[str]:
  params = eqn.params
  numbers = params["dimension_numbers"]
  if any(n != 1 for n in params["lhs_dilation"]) or params["batch_group_count"] != 1:
    raise NoOperatorError("the operation 'conv_general_dilated' with dilated inputs")
  low, high = zip(*params["padding"], strict=True)
  if min(*low, *high) < 0:
    raise NoOperatorError("the operation 'conv_general_dilated' with negative padding")
  x = _permuted(graph, operands[0], numbers.lhs_spec)
  kernel = _permuted(graph, operands[1], numbers.rhs_spec)
  found = graph.node(
    "Conv",
    x,
    kernel,
    strides=list(params["window_strides"]),
    pads=[*low, *high],
    dilations=list(params["rhs_dilation"]),
    group=params["feature_group_count"],
  )
  return [graph.node("Transpose", found, perm=_inverse(numbers.out_spec))]


def _product(graph: Graph, eqn: Any, operands: Sequence[Operand]) -> list[str]:
  """MatMul where there is one contracted axis and the others fit it, else Einsum."""
  (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
  ranks = [len(atom.aval.shape) for atom in eqn.invars]
  free = [
    [axis for axis in range(rank) if axis not in (*contracted, *batch)]
    for rank, contracted, batch in zip(ranks, (left, right), (left_batch, right_batch), strict=True)
  ]
  one = len(left) == 1 and len(free[1]) == 1
  if one and (len(free[0]) == 1 or not left_batch):
    x = _permuted(graph, operands[0], [*left_batch, *free[0], *left])
    y = _permuted(graph, operands[1], [*right_batch, *right, *free[1]])
    return [graph.node("MatMul", x, y)]
  letters = iter("abcdefghijklmnopqrstuvwxyz")
  names: list[dict[int, str]] = [{}, {}]
  for pairs in (zip(left_batch, right_batch, strict=True), zip(left, right, strict=True)):
    for first, second in pairs:
      names[0][first] = names[1][second] = next(letters)
  for side in (0, 1):
    names[side].update({axis: next(letters) for axis in free[side]})
  terms = ["".join(names[side][axis] for axis in range(ranks[side])) for side in (0, 1)]
  kept = [names[0][axis] for axis in (*left_batch, *free[0])] + [names[1][axis] for axis in free[1]]
  equation = f"{','.join(terms)}->{''.join(kept)}"
  return [graph.node("Einsum", *map(graph.whole, operands), equation=equation)]


def _pooling(kind: str) -> Emit:
  """Return the form of a windowed maximum or sum over the two middle axes of (B, H, W, C)."""

  def emit(graph: Graph, eqn: Any, operands: Sequence[Operand]) -> list[str]:
    params, name = eqn.params, eqn.primitive.name
    window, strides = params["window_dimensions"], params["window_strides"]
    outer = [
      (window[axis], strides[axis], *params["padding"][axis]) for axis in (0, len(window) - 1)
    ]
    dilated = any(n != 1 for n in (*params["base_dilation"], *params["window_dilation"]))
    if len(window) != 4 or any(of != (1, 1, 0, 0) for of in outer) or dilated:
      raise NoOperatorError(f"the operation {name!r} over other axes than those of images")
    (top, bottom), (left, right) = params["padding"][1:3]
    options: dict[str, Any] = {"count_include_pad": 1} if kind == "AveragePool" else {}
    pooled = graph.node(
      kind,
      _permuted(graph, operands[0], (0, 3, 1, 2)),
      kernel_shape=list(window[1:3]),
      strides=list(strides[1:3]),
      pads=[top, left, bottom, right],
      **options,
    )
    found = graph.node("Transpose", pooled, perm=[0, 2, 3, 1])
    if kind == "AveragePool":
      count = np.asarray(window[1] * window[2], eqn.outvars[0].aval.dtype)
      found = graph.node("Mul", found, graph.constant(count))
    return [found]

  return emit


LINEAR: dict[str, Emit] = {
  "conv_general_dilated": _convolution,
  "dot_general": _product,
  "reduce_window_max": _pooling("MaxPool"),
  "reduce_window_sum": _pooling("AveragePool"),
}
