"""The two halves of a scheme's loss: what it needs of the targets alone, and all the rest.

The targets of frozen participants are the same whenever an example comes back, and so is whatever
a loss first makes of them, example by example: softened logits, attention maps, FSP matrices. That
half is found in the trace of any loss, without knowing which method it is.
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

# Reading a byte back takes about as long as so many operations (10 on a CPU, 300 on an
# accelerator). What takes fewer is computed again; only what takes more is worth its place.
OPERATIONS_PER_BYTE = 64


@dataclasses.dataclass(frozen=True)
class SplitLoss:
  """A loss in two halves, for batches of one size.

  Attributes:
    stored: what `precompute` returns, as shapes and types.
    reads: of what it depends on through the targets, "participants['teacher']['params']..." and
      "batch.images", say.
    changing: those among `reads` that are trained, or that learners change as they run. Where there
      are any, the targets of an example do not stay what they were.
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
    """What the loss needs of its targets, example by example: arrays (B, ...).

    Args:
      targets: of B examples, as `scheme.targets` gives them.

    Raises:
      ConfigError: if the targets are not of the shapes that were traced.
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
    """The scheme's loss, from what is stored of its targets.

    Args:
      learning: as the scheme's loss takes it; what is differentiated.
      participants: likewise. Those that nothing but the targets depends on are not looked at.
      batch: of B examples.
      stored: what `precompute` returned for them.
      context: of the same axis, over as many devices, as was traced.

    Raises:
      ConfigError: naming what is not of the shape that was traced.
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
    """Bytes of one example's targets."""
    return _bytes_each(jax.tree.leaves(self._targets.output))

  @property
  def bytes_stored(self) -> int:
    """Bytes of what is stored of one example's."""
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
  """Splits a scheme's loss, for batches of this one's size, into halves.

  Only shapes are looked at: arrays, tracers and `jax.ShapeDtypeStruct`s will all do. The values
  that depend on the targets and constants alone, example by example, are found
  (`jaxkd.cache.per_example`). Of these are stored the ones that together cost least: their
  bytes, against the operations of computing the rest from them in every step. What the loss does
  not look at is not stored.

  Args:
    scheme: whose loss and targets.
    participants: its participants.
    batch: B examples, as one device's step has them.
    context: of the step.
    axis_size: devices on the axis `context.axis_name`; None inside a function mapped over it.
    operations_per_byte: how many operations a byte is worth.

  Returns:
    SplitLoss.

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
  places = tuple(flat.axis(var) for var in chosen)
  precompute = flat.part(invars[front:], chosen, effects=False)
  reads = _inputs_read(targets, live_inputs(precompute.jaxpr))
  changing = _paths(trees.merge(traced.output[1].state, learning), "participants")
  return SplitLoss(
    stored=tuple(_examples_first(v.aval, axis) for v, axis in zip(chosen, places, strict=True)),
    reads=reads,
    changing=tuple(path for path in reads if path in set(changing)),
    _targets=targets,
    _loss=traced,
    _precompute=precompute,
    _loss_from_cache=flat.part([*invars[:front], *chosen], flat.outputs),
    _axes=places,
    _axis_size=size,
  )


def table_of_bytes(found: Mapping[str, SplitLoss]) -> str:
  """Bytes of one example's targets, and of what is stored of them, as a Markdown table.

  Args:
    found: a name for each row -> its halves.
  """
  rows = ["| | targets, bytes | stored, bytes | arrays |", "|---|---|---|---|"]
  for name, one in found.items():
    arrays = " + ".join(f"{s.dtype}{list(s.shape[1:])}" for s in one.stored)
    rows.append(f"| {name} | {one.bytes_of_targets} | {one.bytes_stored} | {arrays} |")
  return "\n".join(rows)


def _cheapest(flat: Flat, leaves: Sequence[Any], operations_per_byte: int) -> list[Any]:
  """The per-example values to store.

  Every equation is computed in the first half or in the second. One of the second costs its
  operations, and a value that goes from the first to the second its bytes: the cheapest choice is
  a minimum cut. Equations that are not per example belong to the second.
  """
  first, second = "first half", "second half"
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
  for number, eqn in enumerate(flat.needed(flat.outputs)):
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
  """The paths of the inputs that some of a function's outputs depend on."""
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
