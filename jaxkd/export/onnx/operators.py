"""ONNX forms of JAX's primitives: elementwise operations and reductions, and the table of all.

Each is a function (graph, equation, operands) -> results, by the primitive's name in `OPERATORS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from onnx import helper

from jaxkd.export.onnx.graph import Emit, Graph, NoOperatorError, Operand, Value, trimmed
from jaxkd.export.onnx.linear import LINEAR
from jaxkd.export.onnx.shapes import SHAPES

# Primitive -> operator of one result that broadcasts, with the same operands.
_SAME = {
  "abs": "Abs",
  "add": "Add",
  "add_any": "Add",
  "and": "And",
  "ceil": "Ceil",
  "cos": "Cos",
  "div": "Div",
  "eq": "Equal",
  "erf": "Erf",
  "exp": "Exp",
  "floor": "Floor",
  "ge": "GreaterOrEqual",
  "gt": "Greater",
  "le": "LessOrEqual",
  "log": "Log",
  "logistic": "Sigmoid",
  "lt": "Less",
  "max": "Max",
  "min": "Min",
  "mul": "Mul",
  "neg": "Neg",
  "not": "Not",
  "or": "Or",
  "pow": "Pow",
  "sign": "Sign",
  "sin": "Sin",
  "sqrt": "Sqrt",
  "sub": "Sub",
  "tan": "Tan",
  "tanh": "Tanh",
  "xor": "Xor",
}
_LOGICAL = ("and", "or", "not", "xor")


def _stored(values: Sequence[Value], rank: int) -> tuple[Any, ...]:
  """Return the shape of the arrays' combination: at each axis the size that is not 1."""
  padded = [(1,) * (rank - len(value.stored)) + tuple(value.stored) for value in values]
  return tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*padded, strict=True))


def _elementwise(graph: Graph, eqn: Any, values: Sequence[Value], name: str) -> list[Operand]:
  aval = eqn.outvars[0].aval
  return [Value(name, aval.shape, _stored(values, len(aval.shape)), np.dtype(aval.dtype))]


def _same(graph: Graph, eqn: Any, operands: Sequence[Operand]) -> list[Operand]:
  primitive = eqn.primitive.name
  if primitive == "sub" and isinstance(operands[1], np.ndarray) and operands[1].dtype.kind == "f":
    # The same number, and runtimes merge a sum into the convolution or product before it.
    operands, primitive = (operands[0], -operands[1]), "add"
  rank = len(eqn.outvars[0].aval.shape)
  if any(isinstance(x, Value) and len(x.stored) == rank for x in operands):
    # Vectors as constants, which runtimes take as biases.
    operands = [x if isinstance(x, Value) else x.reshape(trimmed(x.shape)) for x in operands]
  values = [graph.value(operand) for operand in operands]
  if primitive in _LOGICAL and any(value.dtype != bool for value in values):
    raise NoOperatorError(f"the operation {primitive!r} of integers")
  if primitive == "div" and values[0].dtype.kind not in "fV":
    raise NoOperatorError("the operation 'div' of integers")  # rounds towards 0 in some runtimes
  if primitive == "max" and (positive := _above_zero(operands, values)):
    return _elementwise(graph, eqn, values, graph.node("Relu", positive))
  name = graph.node(_SAME[primitive], *(value.name for value in values))
  return _elementwise(graph, eqn, values, name)


def _above_zero(operands: Sequence[Operand], values: Sequence[Value]) -> str:
  """Return the name of x in max(x, 0) of floats, else ""."""
  for index in (0, 1):
    zero = operands[index]
    if isinstance(zero, np.ndarray) and zero.shape == () and zero == 0 and zero.dtype.kind == "f":
      return values[1 - index].name
  return ""


def _composed(build: Any) -> Emit:
  """Return the form of an elementwise primitive that several nodes make up."""

  def emit(graph: Graph, eqn: Any, operands: Sequence[Operand]) -> list[Operand]:
    values = [graph.value(operand) for operand in operands]
    name = build(graph, eqn, *(value.name for value in values))
    return _elementwise(graph, eqn, values, name)

  return emit


def _number(graph: Graph, eqn: Any, value: float) -> str:
  return graph.constant(np.asarray(value, eqn.invars[0].aval.dtype))


def _integer_pow(graph: Graph, eqn: Any, x: str) -> str:
  exponent = eqn.params["y"]
  if exponent == 2:
    return graph.node("Mul", x, x)
  return graph.node("Pow", x, _number(graph, eqn, exponent))


def _rounded(graph: Graph, eqn: Any, x: str) -> str:
  if int(eqn.params["rounding_method"]) != int(jax.lax.RoundingMethod.TO_NEAREST_EVEN):
    raise NoOperatorError("the operation 'round' away from zero")
  return graph.node("Round", x)


def _finite(graph: Graph, eqn: Any, x: str) -> str:
  return graph.node("Not", graph.node("Or", graph.node("IsNaN", x), graph.node("IsInf", x)))


def _cast(graph: Graph, eqn: Any, x: str) -> str:
  return graph.node("Cast", x, to=_type(eqn.params["new_dtype"]))


def _reduced_precision(graph: Graph, eqn: Any, x: str) -> str:
  if (eqn.params["exponent_bits"], eqn.params["mantissa_bits"]) != (8, 23):
    raise NoOperatorError("the operation 'reduce_precision'")
  return x


_COMPOSED = {
  "clamp": lambda g, e, low, x, high: g.node("Min", g.node("Max", x, low), high),
  "convert_element_type": _cast,
  "erfc": lambda g, e, x: g.node("Sub", _number(g, e, 1), g.node("Erf", x)),
  "exp2": lambda g, e, x: g.node("Pow", _number(g, e, 2), x),
  "expm1": lambda g, e, x: g.node("Sub", g.node("Exp", x), _number(g, e, 1)),
  "integer_pow": _integer_pow,
  "is_finite": _finite,
  "log1p": lambda g, e, x: g.node("Log", g.node("Add", x, _number(g, e, 1))),
  "ne": lambda g, e, x, y: g.node("Not", g.node("Equal", x, y)),
  "reduce_precision": _reduced_precision,
  "round": _rounded,
  "rsqrt": lambda g, e, x: g.node("Reciprocal", g.node("Sqrt", x)),
  "square": lambda g, e, x: g.node("Mul", x, x),
  **{
    name: lambda g, e, x: x
    for name in ("stop_gradient", "copy", "copy_p", "optimization_barrier", "device_put")
  },
}


def _type(dtype: Any) -> int:
  return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _select(graph: Graph, eqn: Any, operands: Sequence[Operand]) -> list[Operand]:
  which, *cases = (graph.value(operand) for operand in operands)
  if len(cases) != 2 or which.dtype != bool:
    raise NoOperatorError("the operation 'select_n' of more than two cases")
  name = graph.node("Where", which.name, cases[1].name, cases[0].name)
  return _elementwise(graph, eqn, [which, *cases], name)


def _reduced_sum(graph: Graph, eqn: Any, operands: Sequence[Operand]) -> list[str]:
  """Pooling for the sum over the rows and columns of (B, H, W, C): runtimes quantise that."""
  aval = eqn.invars[0].aval
  if tuple(eqn.params["axes"]) != (1, 2) or len(aval.shape) != 4 or aval.dtype.kind != "f":
    return [_reduction("ReduceSum")(graph, eqn, operands)[0]]
  _, rows, columns, channels = aval.shape
  channels_first = graph.node("Transpose", graph.whole(operands[0]), perm=[0, 3, 1, 2])
  mean = graph.reshaped(graph.node("GlobalAveragePool", channels_first), (None, channels))
  return [graph.node("Mul", mean, graph.constant(np.asarray(rows * columns, aval.dtype)))]


def _reduction(kind: str) -> Any:
  def emit(graph: Graph, eqn: Any, operands: Sequence[Operand]) -> list[str]:
    axes = graph.integers(eqn.params["axes"])
    return [graph.node(kind, graph.whole(operands[0]), axes, keepdims=0)]

  return emit


def _arg(kind: str) -> Emit:
  def emit(graph: Graph, eqn: Any, operands: Sequence[Operand]) -> list[str]:
    (axis,) = eqn.params["axes"]
    found = graph.node(kind, graph.whole(operands[0]), axis=axis, keepdims=0)
    return [graph.node("Cast", found, to=_type(eqn.params["index_dtype"]))]

  return emit


OPERATORS: dict[str, Emit] = {
  **{name: _same for name in _SAME},
  **{name: _composed(build) for name, build in _COMPOSED.items()},
  **LINEAR,
  **SHAPES,
  "argmax": _arg("ArgMax"),
  "argmin": _arg("ArgMin"),
  "reduce_max": _reduction("ReduceMax"),
  "reduce_min": _reduction("ReduceMin"),
  "reduce_prod": _reduction("ReduceProd"),
  "reduce_sum": _reduced_sum,
  "select_n": _select,
}
