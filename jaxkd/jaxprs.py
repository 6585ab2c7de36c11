"""Traced functions (jaxprs): inputs and outputs, reachability, operation counts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import primitives as p
from jax.interpreters import partial_eval

from jaxkd.errors import ConfigError

# Names of primitives that call a function once on their inputs, as not every version of jax exports
# these primitives. "remat2" is jax.checkpoint.
CALLS = frozenset(("jit", "custom_jvp_call", "custom_vjp_call", "remat2", "closed_call"))


@dataclasses.dataclass(frozen=True)
class Traced:
  """A traced function of pytrees.

  Attributes:
    jaxpr: from the leaves of the arguments to the arrays among the leaves of the result.
    inputs: argument name -> shapes and types.
    output: the result, with shapes and types in place of arrays. Other leaves, such as a Python
      zero, are kept as they were returned.
  """

  jaxpr: core.ClosedJaxpr
  inputs: Mapping[str, Any]
  output: Any

  def rebuild(self, arrays: Sequence[Any]) -> Any:
    """Return the result with these arrays in it."""
    # Literals among a jaxpr's outputs are numbers, not arrays.
    found = map(jnp.asarray, arrays)
    return jax.tree.map(lambda x: next(found) if _is_shape(x) else x, self.output)


def trace(
  function: Callable[..., Any], inputs: Mapping[str, Any], axes: Sequence[tuple[str, int]] = ()
) -> Traced:
  """Trace a function of the inputs, in their order.

  Args:
    function: a function of pytrees.
    inputs: argument name -> pytree of arrays, or of their shapes and types.
    axes: (name, size) of mapped axes, besides those of the surrounding mapped functions.
  """
  shapes = {name: shapes_of(tree) for name, tree in inputs.items()}
  output: Any = None

  def arrays(*arguments: Any) -> list[jax.Array]:
    nonlocal output
    found = function(*arguments)
    output = jax.tree.map(lambda x: shapes_of(x) if isinstance(x, jax.Array) else x, found)
    return [leaf for leaf in jax.tree.leaves(found) if isinstance(leaf, jax.Array)]

  jaxpr = jax.make_jaxpr(arrays, axis_env=list(axes) or None)(*shapes.values())
  return Traced(jaxpr, shapes, output)


def shapes_of(tree: Any) -> Any:
  """Replace the arrays and numbers of a tree by `jax.ShapeDtypeStruct`s."""

  def shape(leaf: Any) -> jax.ShapeDtypeStruct:
    kind = jax.typeof(leaf)
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype, weak_type=kind.weak_type)

  return jax.tree.map(shape, tree)


def matching_leaves(name: str, tree: Any, traced: Any) -> list[Any]:
  """Return the leaves of a tree after checking them against the traced shapes and types.

  Raises:
    ConfigError: naming the first leaf of another shape or type.
  """
  structure: Any = jax.tree.structure(tree)
  expected: Any = jax.tree.structure(traced)
  leaves, paths = jax.tree.leaves(tree), jax.tree.leaves_with_path(traced)
  if structure != expected:
    raise ConfigError(f"{name} is {structure}, but the loss was traced for {expected}")
  for leaf, (path, want) in zip(leaves, paths, strict=True):
    have = jax.typeof(leaf)
    if (have.shape, have.dtype) != (want.shape, want.dtype):
      raise ConfigError(
        f"{name}{jax.tree_util.keystr(path)} is {have.dtype}{list(have.shape)}, but the loss was "
        f"traced for {want.dtype}{list(want.shape)}"
      )
  return leaves


def live_inputs(jaxpr: core.Jaxpr, outputs: Sequence[bool] | None = None) -> list[bool]:
  """Return a flag for each input: True if the outputs depend on it.

  Args:
    jaxpr: of the function; loops, branches and nested calls are included in the analysis.
    outputs: a flag for each output: True for those in question; None means all.
  """
  wanted = [True] * len(jaxpr.outvars) if outputs is None else list(outputs)
  return partial_eval.dce_jaxpr(jaxpr, wanted)[1]


def without_dead_code(jaxpr: core.Jaxpr, keep: bool | Sequence[bool] = True) -> core.Jaxpr:
  """Remove the equations that no output needs, nested ones included.

  Equations with side effects, such as `jax.debug.print`, stay.

  Args:
    jaxpr: of the function.
    keep: a flag for each input, or one for all: True keeps it even if no output needs it.
  """
  return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=keep)[0]


def multiply_adds_of(jaxpr: core.Jaxpr) -> int:
  """Count the multiply-adds of a traced function, as `jaxkd.evaluate.multiply_adds` does."""
  return _multiply_adds(without_dead_code(jaxpr))


def operations(eqn: core.JaxprEqn) -> int:
  """Estimate the operations of an equation: two per multiply-add, otherwise one per element."""
  inner = called(eqn)
  if inner is not None:
    return sum(operations(one) for one in inner.jaxpr.eqns)
  sizes = (math.prod(shape_of(var)) for var in (*eqn.outvars, *eqn.invars))
  return 2 * products(eqn) or max(sizes, default=0)


def products(eqn: core.JaxprEqn) -> int:
  """Count the multiply-adds of a matrix product or convolution; 0 for any other equation.

  One per weight and output element, including those that fall on padding.
  """
  if eqn.primitive is p.dot_general_p:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = shape_of(eqn.invars[0])
    return math.prod(shape_of(eqn.outvars[0])) * math.prod(left[axis] for axis in contracted)
  if eqn.primitive is p.conv_general_dilated_p:
    kernel, channel = shape_of(eqn.invars[1]), eqn.params["dimension_numbers"].rhs_spec[0]
    # The kernel's input channels are those of one group.
    return math.prod(shape_of(eqn.outvars[0])) * (math.prod(kernel) // kernel[channel])
  return 0


def called(eqn: core.JaxprEqn) -> core.ClosedJaxpr | None:
  """Return the function that an equation of `CALLS` calls; None for any other equation."""
  if eqn.primitive.name not in CALLS:
    return None
  function: Any = eqn.params.get("call_jaxpr", eqn.params.get("jaxpr"))
  closed = isinstance(function, core.ClosedJaxpr)
  return function if closed else core.ClosedJaxpr(function, ())


def is_variable(atom: Any) -> bool:
  """Check whether an input of an equation, or an output of a function, is a variable."""
  return isinstance(atom, core.Var)


def shape_of(atom: Any) -> tuple[int, ...]:
  """Return the shape of an input or output of an equation."""
  return atom.aval.shape


def inner_jaxprs(eqn: core.JaxprEqn) -> list[core.Jaxpr]:
  """Return the jaxprs among the parameters of an equation, such as the body of a loop."""
  found = []
  for value in eqn.params.values():
    for one in value if isinstance(value, tuple | list) else (value,):
      if isinstance(one, core.ClosedJaxpr):
        found.append(one.jaxpr)
      elif isinstance(one, core.Jaxpr):
        found.append(one)
  return found


def _multiply_adds(jaxpr: core.Jaxpr) -> int:
  total = 0
  for eqn in jaxpr.eqns:
    inner = [_multiply_adds(one) for one in inner_jaxprs(eqn)]
    name = eqn.primitive.name
    if name == "while" and any(inner):
      raise ConfigError("multiply_adds: a while loop of unknown length multiplies matrices")
    if name == "scan":
      total += eqn.params["length"] * sum(inner)
    elif name == "cond":
      total += max(inner)
    else:
      total += products(eqn) + sum(inner)
  return total


def _is_shape(leaf: Any) -> bool:
  return isinstance(leaf, jax.ShapeDtypeStruct)
