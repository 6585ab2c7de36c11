"""A scheme's loss in two parts: one computed once per example from the targets, and the rest.

Targets of frozen participants are the same whenever an example comes back, and so is what a loss
computes first from the targets of each example: softened logits, attention maps, FSP matrices.
That part is found by tracing the loss, for any method.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from jaxkd import networks as trees
from jaxkd.cache.axis_rules import PerExample
from jaxkd.cache.minimum_cut import PricedGraph
from jaxkd.cache.per_example import Flat, flatten
from jaxkd.errors import ConfigError
from jaxkd.jaxprs import Traced, live_inputs, matching_leaves, operations, trace
from jaxkd.types import Array, Aux, Batch, Context, Participants, Scheme

# Operations that take about as long as reading one byte of the cache (10 on a CPU, 300 on an
# accelerator). Values that take fewer operations per byte are computed again in every step.
OPERATIONS_PER_BYTE = 64


@dataclasses.dataclass(frozen=True)
class SplitLoss:
  """A loss in two parts, for batches of one size: `precompute` and `loss_from_cache`.

  Attributes:
    stored: shapes and types of what `precompute` returns.
    reads: paths of the inputs of `scheme.targets` on which `stored` depends, for instance
      "participants['teacher']['params']..." and "batch.inputs".
    changing: those of `reads` that are trained, or that learners update (batch statistics). If
      there are any, the targets of an example change during training and cannot be cached.
  """

  stored: tuple[jax.ShapeDtypeStruct, ...]
  reads: tuple[str, ...]
  changing: tuple[str, ...]
  _targets: Traced
  _loss: Traced
  _precompute: core.ClosedJaxpr
  _loss_from_cache: core.ClosedJaxpr
  _axes: tuple[int, ...]
  _axis_size: int | None

  def precompute(self, targets: Any) -> tuple[Array, ...]:
    """Compute from the targets the arrays (B, ...) that the rest of the loss needs.

    Args:
      targets: what `scheme.targets` returns for B examples.

    Raises:
      ConfigError: if the targets do not have the traced shapes.
    """
    leaves = matching_leaves("targets", targets, self._targets.output)
    found = core.jaxpr_as_fun(self._precompute)(*leaves)
    return tuple(jnp.moveaxis(x, axis, 0) for x, axis in zip(found, self._axes, strict=True))

  def loss_from_cache(
    self,
    learning: Participants,
    participants: Participants,
    batch: Batch,
    stored: Sequence[Array],
    context: Context,
  ) -> tuple[Array, Aux]:
    """Compute the scheme's loss from the stored arrays.

    Args:
      learning: first argument of the scheme's loss, which is differentiated.
      participants: second argument. The values of participants that only the targets depend on
        are not used.
      batch: B examples.
      stored: what `precompute` returned for these examples.
      context: of the same axis, over as many devices, as was traced.

    Raises:
      ConfigError: naming the argument that does not have the traced shape.
    """
    given = (learning, participants, batch, context)
    leaves = [
      leaf
      for (name, traced), tree in zip(self._loss.inputs.items(), given, strict=False)
      for leaf in matching_leaves(name, tree, traced)
    ]
    leaves += matching_leaves("stored", tuple(stored), self.stored)
    if (size := _axis_size(context, None)) != self._axis_size:
      raise ConfigError(
        f"the axis {context.axis_name!r} is over {size} devices, but the loss was traced for "
        f"{self._axis_size}"
      )
    front = len(leaves) - len(self.stored)
    moved = [jnp.moveaxis(x, 0, a) for x, a in zip(leaves[front:], self._axes, strict=True)]
    return self._loss.rebuild(core.jaxpr_as_fun(self._loss_from_cache)(*leaves[:front], *moved))

  @property
  def bytes_of_targets(self) -> int:
    """Bytes of the targets of one example."""
    return _bytes_each(jax.tree.leaves(self._targets.output))

  @property
  def bytes_stored(self) -> int:
    """Bytes of the stored arrays of one example."""
    return _bytes_each(self.stored)


def split_loss(
  scheme: Scheme,
  participants: Participants,
  batch: Batch,
  context: Context,
  *,
  axis_size: int | None = None,
  operations_per_byte: int = OPERATIONS_PER_BYTE,
) -> SplitLoss:
  """Split a scheme's loss into two parts, for batches of the given one's size.

  Only shapes are used: arguments may hold arrays, tracers or `jax.ShapeDtypeStruct`s. Candidates
  for storing are the values that depend on the targets and constants alone, example by example
  (`jaxkd.cache.per_example`). The stored ones have the least total cost: their bytes, and the
  operations of computing the rest from them in every step. Targets that the loss does not use are
  not stored.

  Args:
    scheme: the scheme.
    participants: its participants.
    batch: B examples of one device's step.
    context: context of the step.
    axis_size: devices on the axis `context.axis_name`; None inside a function mapped over it.
    operations_per_byte: operations that cost as much as reading one stored byte.

  Raises:
    ConfigError: if an array of the targets does not have the examples along its first axis, or
      there is no such axis of devices.
  """
  size = _axis_size(context, axis_size)
  axes = [(context.axis_name, axis_size)] if context.axis_name and axis_size else []
  learning = trees.select(participants, scheme.learners)

  def targets_of(*given: Any) -> Any:
    return jax.tree.map(jnp.asarray, scheme.targets(*given))

  def loss(learning: Any, participants: Any, batch: Any, context: Any, targets: Any) -> Any:
    return scheme.loss(learning, participants, batch, targets, context)

  targets = trace(targets_of, {"participants": participants, "batch": batch}, axes)
  _check_first_axis(targets.output, len(jax.tree.leaves(batch.indices)[0]))
  given = {"learning": learning, "participants": participants, "batch": batch, "context": context}
  traced = trace(loss, {**given, "targets": targets.output}, axes)

  invars = traced.jaxpr.jaxpr.invars
  front = len(invars) - len(jax.tree.leaves(targets.output))
  flat = flatten(traced.jaxpr, dict.fromkeys(invars[front:], PerExample(0)))
  chosen = _cheapest(flat, invars[front:], operations_per_byte)
  example_axes = tuple(flat.axis(var) for var in chosen)
  precompute = flat.part(invars[front:], chosen, effects=False)
  reads = _inputs_read(targets, live_inputs(precompute.jaxpr))
  changing = _paths(trees.merge(traced.output[1].state, learning), "participants")
  return SplitLoss(
    stored=tuple(
      _examples_first(v.aval, axis) for v, axis in zip(chosen, example_axes, strict=True)
    ),
    reads=reads,
    changing=tuple(path for path in reads if path in set(changing)),
    _targets=targets,
    _loss=traced,
    _precompute=precompute,
    _loss_from_cache=flat.part([*invars[:front], *chosen], flat.outputs),
    _axes=example_axes,
    _axis_size=size,
  )


def table_of_bytes(found: Mapping[str, SplitLoss]) -> str:
  """Format a Markdown table of the bytes of one example's targets and stored arrays.

  Args:
    found: row name -> split loss.
  """
  rows = ["| | targets, bytes | stored, bytes | arrays |", "|---|---|---|---|"]
  for name, one in found.items():
    arrays = " + ".join(f"{s.dtype}{list(s.shape[1:])}" for s in one.stored)
    rows.append(f"| {name} | {one.bytes_of_targets} | {one.bytes_stored} | {arrays} |")
  return "\n".join(rows)


def _cheapest(flat: Flat, leaves: Sequence[Any], operations_per_byte: int) -> list[Any]:
  """Choose the per-example values to store.

  Every equation belongs to the first part, computed once, or to the second, computed in every
  step. An equation of the second part costs its operations, and a value that the second part takes
  from the first costs its bytes: the cheapest choice is a minimum cut. Equations that are not per
  example belong to the second part.
  """
  first, second = "first part", "second part"
  graph = PricedGraph()
  source: dict[Any, Any] = {}

  def known(atoms: Iterable[Any]) -> list[Any]:
    return [atom for atom in atoms if isinstance(flat.of(atom), PerExample)]

  def comes_from(value: Any, place: Any) -> None:
    source[value] = place
    size = math.prod(value.aval.shape) * value.aval.dtype.itemsize
    graph.connect(place, value, size * operations_per_byte)

  for leaf in leaves:
    comes_from(leaf, first)
  for number, eqn in enumerate(flat.whole().jaxpr.eqns):
    made = known(eqn.outvars)
    for value in made:
      comes_from(value, number)
    if made:
      graph.connect(first, number, operations(eqn))
    for value in known(eqn.invars):
      graph.connect(value, number if made else second, PricedGraph.NEVER)
  for value in known(flat.outputs):
    graph.connect(value, second, PricedGraph.NEVER)
  later = graph.far_side(first, second)
  return [value for value, place in source.items() if value in later and place not in later]


def _axis_size(context: Context, given: int | None) -> int | None:
  if context.axis_name is None or given is not None:
    return given if context.axis_name else None
  try:
    return lax.axis_size(context.axis_name)
  except NameError:
    raise ConfigError(
      f"axis_size=None: expected the number of devices outside of what is mapped over "
      f"{context.axis_name!r}"
    ) from None


def _check_first_axis(targets: Any, size: int) -> None:
  for path, leaf in jax.tree.leaves_with_path(targets):
    if leaf.ndim == 0 or leaf.shape[0] != size:
      raise ConfigError(
        f"targets{jax.tree_util.keystr(path)} is {leaf.dtype}{list(leaf.shape)}: to be stored it "
        f"needs the batch's {size} examples along its first axis"
      )


def _inputs_read(function: Traced, outputs: Sequence[bool]) -> tuple[str, ...]:
  """Return the paths of the inputs that the flagged outputs of a function depend on."""
  paths = [path for name, tree in function.inputs.items() for path in _paths(tree, name)]
  live = live_inputs(function.jaxpr.jaxpr, outputs)
  return tuple(path for path, yes in zip(paths, live, strict=True) if yes)


def _paths(tree: Any, name: str) -> list[str]:
  return [name + jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]


def _examples_first(value: Any, axis: int) -> jax.ShapeDtypeStruct:
  shape = list(value.shape)
  return jax.ShapeDtypeStruct((shape.pop(axis), *shape), value.dtype)


def _bytes_each(arrays: Iterable[Any]) -> int:
  return sum(math.prod(a.shape[1:]) * a.dtype.itemsize for a in arrays)
