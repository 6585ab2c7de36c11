"""Tracing a function of pytrees: what goes in, what comes out, and what depends on what."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxkd.errors import ConfigError
from jaxkd.train.halves.axis_rules import is_variable
from jaxkd.train.halves.per_example import called


@dataclasses.dataclass(frozen=True)
class Traced:
  """A function of pytrees, traced.

  Attributes:
    jaxpr: from the arguments' leaves to the arrays among the result's.
    inputs: argument's name -> its shapes and types.
    output: the result, with shapes and types for arrays. What is no array, such as a Python zero,
      is there as it was returned.
  """

  jaxpr: core.ClosedJaxpr
  inputs: Mapping[str, Any]
  output: Any

  def rebuild(self, arrays: Sequence[Any]) -> Any:
    """The result with these arrays."""
    # What is a number in a jaxpr is not yet an array.
    found = map(jnp.asarray, arrays)
    return jax.tree.map(lambda x: next(found) if _is_shape(x) else x, self.output)


def trace(
  function: Callable[..., Any], inputs: Mapping[str, Any], axes: Sequence[tuple[str, int]] = ()
) -> Traced:
  """Traces a function of the inputs, in their order.

  Args:
    function: of pytrees.
    inputs: argument's name -> pytree of arrays, or of their shapes and types.
    axes: (name, size) of mapped axes, besides those that this is called in.
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
  """The tree with `jax.ShapeDtypeStruct`s for its arrays and numbers."""

  def shape(leaf: Any) -> jax.ShapeDtypeStruct:
    kind = jax.typeof(leaf)
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype, weak_type=kind.weak_type)

  return jax.tree.map(shape, tree)


def matching_leaves(name: str, tree: Any, traced: Any) -> list[Any]:
  """The leaves of a tree, checked against what a function was traced for.

  Raises:
    ConfigError: naming the first leaf that is of another shape or type.
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


def live_inputs(function: core.ClosedJaxpr, outputs: Sequence[bool] | None = None) -> list[bool]:
  """Which inputs a function's outputs depend on.

  Args:
    function: of which loops and branches count as if every output depended on every input.
    outputs: which of its outputs; None is all.
  """
  jaxpr = function.jaxpr
  wanted = [True] * len(jaxpr.outvars) if outputs is None else outputs
  live = {v for v, yes in zip(jaxpr.outvars, wanted, strict=True) if yes and is_variable(v)}
  for eqn in reversed(jaxpr.eqns):
    used = [var in live for var in eqn.outvars]
    if any(used):
      inner = called(eqn)
      reads = [True] * len(eqn.invars) if inner is None else live_inputs(inner, used)
      live |= {v for v, yes in zip(eqn.invars, reads, strict=True) if yes and is_variable(v)}
  return [var in live for var in jaxpr.invars]


def _is_shape(leaf: Any) -> bool:
  return isinstance(leaf, jax.ShapeDtypeStruct)
