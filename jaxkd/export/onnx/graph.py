"""Conversion of a JAX function to an ONNX model, one operation of its jaxpr at a time.

What depends on constants alone is computed here, so that the model holds weights in place of the
operations that made them. A branch by platform (`lax.platform_dependent`) is replaced by its
default.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import helper, numpy_helper

from jaxkd.errors import ConfigError

# Operators of this version, and the format of the file: read by every onnxruntime from 1.16 on.
OPSET, IR_VERSION = 18, 9
# A constant that a broadcast would make larger than this is stored as it is.
_LARGEST_REPEATED = 2**14
# Primitive -> parameter with the function that it calls.
_CALLS = {
  "jit": "jaxpr",
  "pjit": "jaxpr",
  "closed_call": "call_jaxpr",
  "core_call": "call_jaxpr",
  "custom_jvp_call": "call_jaxpr",
  "custom_vjp_call": "call_jaxpr",
  "custom_vjp_call_jaxpr": "fun_jaxpr",
  "custom_vmap_call": "call",
  "checkpoint": "jaxpr",
  "remat2": "jaxpr",
}

Shape = tuple[Any, ...]  # of integers and, for the batch, a symbolic dimension


class NoOperatorError(Exception):
  """A jaxpr has an operation that ONNX cannot express; the message names it."""


@dataclasses.dataclass(frozen=True)
class Value:
  """An array of the model.

  Attributes:
    name: its name in the ONNX graph.
    shape: the shape that it stands for.
    stored: the shape of the array itself, which broadcasts to `shape`.
    dtype: its type.
  """

  name: str
  shape: Shape
  stored: Shape
  dtype: np.dtype


Operand = Value | np.ndarray


class Graph:
  """The nodes and constants of an ONNX graph that is being written."""

  def __init__(self) -> None:
    self.nodes: list[Any] = []
    self.constants: dict[tuple[Any, ...], tuple[str, np.ndarray]] = {}
    self.batch: tuple[Any, str] | None = None  # the symbolic dimension, and an input that has it
    self._names = 0

  def name(self, what: str) -> str:
    """Return a new name."""
    self._names += 1
    return f"{what}_{self._names}"

  def constant(self, array: Any) -> str:
    """Return the name of a constant; equal ones are stored once."""
    array = np.ascontiguousarray(array)
    key = (array.shape, array.dtype.str, hashlib.sha256(array.data).digest())
    if key not in self.constants:
      self.constants[key] = (self.name("constant"), array)
    return self.constants[key][0]

  def integers(self, values: Iterable[int]) -> str:
    """Return the name of an int64 vector."""
    return self.constant(np.asarray(list(values), np.int64))

  def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
    """Add a node with one output; return the name of that."""
    (output,) = self.split(kind, *inputs, outputs=1, **attributes)
    return output

  def split(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
    """Add a node; return the names of its outputs."""
    names = [self.name(kind.lower()) for _ in range(outputs)]
    self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
    return names

  def value(self, operand: Operand) -> Value:
    """Return an operand as a value; an array becomes a constant."""
    if isinstance(operand, Value):
      return operand
    return Value(self.constant(operand), operand.shape, operand.shape, operand.dtype)

  def whole(self, operand: Operand) -> str:
    """Return the name of an operand that has all of its shape."""
    value = self.value(operand)
    if value.stored == value.shape:
      return value.name
    return self.node("Expand", value.name, self.shape_tensor(value.shape))

  def shape_tensor(self, shape: Shape) -> str:
    """Return the name of an int64 vector with a shape, which may have the batch size."""
    if all(isinstance(size, int) for size in shape):
      return self.integers(shape)
    parts = []
    for size in shape:
      if isinstance(size, int):
        parts.append(self.integers([size]))
      elif self.batch is not None and size == self.batch[0]:
        parts.append(self.node("Shape", self.batch[1], start=0, end=1))
      else:
        raise NoOperatorError(f"a size of {size}")
    return self.node("Concat", *parts, axis=0)

  def reshaped(self, name: str, shape: Sequence[Any]) -> str:
    """Add a Reshape; one size may be symbolic."""
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    if sizes.count(-1) > 1:
      raise NoOperatorError(f"a reshape to {shape}")
    return self.node("Reshape", name, self.integers(sizes))


Emit = Callable[[Graph, Any, Sequence[Operand]], Sequence[Operand | str]]


def converted(
  function: Callable[..., Sequence[Any]],
  inputs: Mapping[str, jax.ShapeDtypeStruct],
  outputs: Sequence[str],
  facts: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
  """Convert a function to an ONNX model.

  Args:
    function: of arrays in the order of `inputs`; returns a sequence of arrays.
    inputs: name -> shape and type; the first axis may be a symbolic dimension of `jax.export`, the
      same in all.
    outputs: names of the results.
    facts: texts that the model holds by name, its metadata.

  Returns:
    The model, serialized. Its symbolic axes are named "batch".

  Raises:
    NoOperatorError: naming the operation that ONNX cannot express.
  """
  closed = jax.make_jaxpr(lambda *arrays: tuple(function(*arrays)))(*inputs.values())
  graph = Graph()
  given: list[Operand] = []
  for name, like in inputs.items():
    given.append(Value(name, like.shape, like.shape, np.dtype(like.dtype)))
    if like.shape and not isinstance(like.shape[0], int) and graph.batch is None:
      graph.batch = (like.shape[0], name)
  found = _run(graph, closed.jaxpr, closed.consts, given)
  for name, result in zip(outputs, found, strict=True):
    graph.nodes.append(helper.make_node("Identity", [graph.whole(result)], [name]))
  avals: Any = closed.out_avals
  taken = [_stated(name, like) for name, like in inputs.items()]
  returned = [_stated(name, like) for name, like in zip(outputs, avals, strict=True)]
  read = {name for node in graph.nodes for name in node.input}
  constants = [
    numpy_helper.from_array(x, name) for name, x in graph.constants.values() if name in read
  ]
  model = helper.make_model(
    helper.make_graph(graph.nodes, "jaxkd", taken, returned, constants),
    opset_imports=[helper.make_opsetid("", OPSET)],
    ir_version=IR_VERSION,
    producer_name="jaxkd",
  )
  helper.set_model_props(model, dict(facts))
  onnx.checker.check_model(model, full_check=True)
  return model.SerializeToString()


def _stated(name: str, like: Any) -> Any:
  sizes = [size if isinstance(size, int) else "batch" for size in like.shape]
  kind = helper.np_dtype_to_tensor_dtype(np.dtype(like.dtype))
  return helper.make_tensor_value_info(name, kind, sizes)


def _run(
  graph: Graph, jaxpr: Any, constants: Sequence[Any], given: Sequence[Operand]
) -> list[Operand]:
  """Write the operations of a jaxpr; return its results."""
  from jaxkd.export.onnx.operators import OPERATORS

  known: dict[Any, Operand] = {}
  known.update(zip(jaxpr.constvars, map(np.asarray, constants), strict=True))
  known.update(zip(jaxpr.invars, given, strict=True))

  def read(atom: Any) -> Operand:
    if isinstance(atom, core.Literal):
      like: Any = atom.aval
      return np.asarray(atom.val, like.dtype)
    return known[atom]

  eqn: Any
  for eqn in _needed(jaxpr):
    operands = [read(atom) for atom in eqn.invars]
    name = eqn.primitive.name
    if name in _CALLS:
      called = eqn.params[_CALLS[name]]
      results: Any = _run(
        graph, getattr(called, "jaxpr", called), getattr(called, "consts", ()), operands
      )
    elif name == "platform_index":
      results = [np.asarray(_default(eqn.params["platforms"]), np.int32)]
    elif name == "cond" and isinstance(operands[0], np.ndarray):
      branches = eqn.params["branches"]
      branch = branches[min(max(int(operands[0]), 0), len(branches) - 1)]
      results = _run(graph, branch.jaxpr, branch.consts, operands[1:])
    elif _is_constant(eqn, operands):
      with jax.ensure_compile_time_eval():
        result = eqn.primitive.bind(*operands, **eqn.params)
      several = eqn.primitive.multiple_results
      results = [np.asarray(x) for x in (result if several else [result])]
    elif name in OPERATORS:
      results = OPERATORS[name](graph, eqn, operands)
    else:
      raise NoOperatorError(f"the operation {name!r}")
    for variable, result in zip(eqn.outvars, results, strict=True):
      if isinstance(result, str):
        aval: Any = variable.aval
        result = Value(result, aval.shape, aval.shape, np.dtype(aval.dtype))
      known[variable] = result
  return [read(atom) for atom in jaxpr.outvars]


def _needed(jaxpr: Any) -> list[Any]:
  """Return the equations on which a result depends: features of a network are no logits."""
  wanted = {atom for atom in jaxpr.outvars if not isinstance(atom, core.Literal)}
  kept = []
  for eqn in reversed(jaxpr.eqns):
    if wanted.intersection(eqn.outvars):
      kept.append(eqn)
      wanted.update(atom for atom in eqn.invars if not isinstance(atom, core.Literal))
  return kept[::-1]


def _is_constant(eqn: Any, operands: Sequence[Operand]) -> bool:
  """Check whether an operation can be computed now, and its result is not needlessly large."""
  if eqn.primitive.name == "dim_as_value":
    raise NoOperatorError("the batch size as a number")
  constants = [operand.size for operand in operands if isinstance(operand, np.ndarray)]
  if len(constants) < len(operands):
    return False
  shapes = [variable.aval.shape for variable in eqn.outvars]
  if not all(isinstance(size, int) for shape in shapes for size in shape):
    return False
  size = max(int(np.prod(shape)) for shape in shapes)
  return size <= max([_LARGEST_REPEATED, *constants])


def _default(platforms: Sequence[Any]) -> int:
  """Return the branch of `lax.platform_dependent` for any platform, or else for the CPU."""
  for wanted in (lambda p: p is None, lambda p: "cpu" in p):
    for index, platform in enumerate(platforms):
      if wanted(platform):
        return index
  raise NoOperatorError("a function of some platforms alone")


def trimmed(shape: Sequence[Any]) -> Shape:
  """Return a shape without leading sizes of 1, which broadcasting adds.

  >>> trimmed((1, 1, 3, 1))
  (3, 1)
  """
  return tuple(itertools.dropwhile(lambda size: size == 1, shape))


def no_form(what: str, error: NoOperatorError) -> ConfigError:
  """Return the error of a network, in one line."""
  return ConfigError(
    f"{what} cannot be written as ONNX: {error} has no form there; --format stablehlo (the "
    "default) writes any network"
  )
