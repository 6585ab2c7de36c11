"""Steps mapped over devices by pmap, and the layout of their states, batches and results."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import export, lax

from jaxkd.types import Participants

AXIS_NAME = "devices"


def map_training_step(
  step: Callable[..., tuple[Any, Any]],
  devices: Sequence[jax.Device],
  *,
  frozen: Sequence[str] = (),
  steps_per_call: int = 1,
) -> Callable[..., tuple[Any, Any]]:
  """Map a training step over devices: (state, sharded batch, ...) -> (state, metrics).

  The given state is donated. Arguments after the batch are the same on all devices (`replicate`)
  and are kept. The first call compiles the step; later arguments must have the same shapes.

  Args:
    step: the step of one device, over the axis AXIS_NAME; its state is a dataclass with a field
      `participants`.
    devices: devices that take part.
    frozen: participants that `step` does not change. They are inputs of the compiled program but
      not outputs, which saves handling their many arrays in every step, and are not donated.
    steps_per_call: number of steps that one call makes, one after the other in one program. If more
      than 1, the batch is that of `shard_steps`, and metrics have a leading axis of steps.
  """

  def of_device(
    state: Any, shared: tuple[Participants, tuple[Any, ...]], batch: Any
  ) -> tuple[Any, Any]:
    frozen_participants, rest = shared

    def one(state: Any, batch: Any) -> tuple[Any, Any]:
      state, metrics = step(_with_frozen(state, frozen_participants), batch, *rest)
      return _without_frozen(state, frozen)[0], metrics

    return one(state, batch) if steps_per_call == 1 else lax.scan(one, state, batch)

  mapped = jax.pmap(
    of_device,
    axis_name=AXIS_NAME,
    # Three arguments, not more: if there are as many arrays as arguments, pmap takes each argument
    # for an array.
    in_axes=(None, None, 0),
    out_axes=None,
    devices=devices if jax.process_count() == 1 else None,
    donate_argnums=0,
  )

  compiled = _compile_at_first_call(mapped)

  def call(state: Any, batch: Any, *rest: Any) -> tuple[Any, Any]:
    changing, frozen_participants = _without_frozen(state, frozen)
    changing, metrics = compiled(changing, (frozen_participants, rest), batch)
    return _with_frozen(changing, frozen_participants), metrics

  return call


def _without_frozen(state: Any, frozen: Sequence[str]) -> tuple[Any, Participants]:
  """Return the state without its frozen participants, and these participants."""
  changing = {name: v for name, v in state.participants.items() if name not in frozen}
  removed = {name: state.participants[name] for name in frozen}
  return dataclasses.replace(state, participants=changing), removed


def _with_frozen(state: Any, frozen: Participants) -> Any:
  """Undo `_without_frozen`."""
  return dataclasses.replace(state, participants={**state.participants, **frozen})


def _compile_at_first_call(mapped: Any) -> Callable[..., Any]:
  """Compile a mapped function for the shapes of its first arguments, which all later calls have.

  A pmapped function checks all its arguments in Python at every call, which takes noticeable time
  in steps of small networks. With several processes it is called as it is, as it must be.
  """
  compiled: Callable[..., Any] | None = None

  def call(*arguments: Any) -> Any:
    nonlocal compiled
    if compiled is None:
      single = jax.process_count() == 1
      compiled = mapped.lower(*arguments).compile() if single else mapped
    return compiled(*arguments)

  return call


def map_evaluation_step(
  step: Callable[[Any, Any], Any], devices: Sequence[jax.Device]
) -> Callable[[Any, Any], Any]:
  """Map a step over devices: (participants, sharded batch) -> results pooled over the devices.

  No argument is donated.
  """
  return _compile_at_first_call(
    jax.pmap(
      step,
      axis_name=AXIS_NAME,
      in_axes=(None, 0),
      out_axes=None,
      devices=devices if jax.process_count() == 1 else None,
    )
  )


def map_over_examples(
  step: Callable[[Any, Any], Any], devices: Sequence[jax.Device]
) -> Callable[[Any, Any], Any]:
  """Map a step over devices: (tree, sharded batch) -> results per example, sharded as the batch.

  No argument is donated. The axis covers the devices of this process only.
  """
  mapped = jax.pmap(step, axis_name=AXIS_NAME, in_axes=(None, 0), devices=devices)
  return _compile_at_first_call(mapped)


def lower(
  step: Callable[[Any, Any], Any],
  state: Any,
  batch: Any,
  *,
  devices: int,
  platforms: Sequence[str],
) -> export.Exported:
  """Lower a mapped step from shapes alone, for devices and platforms that need not be present.

  It uses `jax.shard_map`, as `jax.export` does not accept pmap; the step and its collectives are
  the same.

  Args:
    step: the step of one device, over the axis AXIS_NAME.
    state: shapes and types of its first argument, which every device holds.
    batch: shapes and types of the whole batch, which is split over the devices.
    devices: number of devices; it must divide the batch.
    platforms: some of "cpu", "cuda", "rocm", "tpu".
  """
  mesh = jax.sharding.AbstractMesh((devices,), (AXIS_NAME,))
  everywhere, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(AXIS_NAME)
  # With check_vma=True gradients would be summed over the devices once more.
  mapped = jax.shard_map(
    step, mesh=mesh, in_specs=(everywhere, split), out_specs=everywhere, check_vma=False
  )

  def laid_out(tree: Any, spec: jax.sharding.PartitionSpec) -> Any:
    layout = jax.sharding.NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), tree)

  arguments = laid_out(state, everywhere), laid_out(batch, split)
  return export.export(jax.jit(mapped), platforms=platforms)(*arguments)


def shard(batch: Any, devices: Sequence[jax.Device]) -> Any:
  """Reshape host arrays (B, ...) to (devices, B / devices, ...), a mapped step's batch."""
  count = len(devices)
  return jax.tree.map(lambda x: np.reshape(x, (count, x.shape[0] // count, *x.shape[1:])), batch)


def shard_steps(batches: Sequence[Any], devices: Sequence[jax.Device]) -> Any:
  """Stack the batches of several steps to (devices, steps, B / devices, ...).

  A single batch is laid out as by `shard`, without the axis of steps.
  """
  if len(batches) == 1:
    return shard(batches[0], devices)
  sharded = [shard(batch, devices) for batch in batches]
  return jax.tree.map(lambda *xs: np.stack(xs, axis=1), *sharded)


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
  """Copy a tree to every device, in the layout of the states that a mapped step returns.

  With another layout the step would be compiled twice: for the first call and for later ones.
  """
  mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS_NAME,))
  layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  # Copied through the host: a placed device array would be an alias, which donation then deletes.
  return jax.device_put(host_copy(tree), layout)


def host_copy(tree: Any) -> Any:
  """Copy a tree to numpy arrays, which are independent of devices and of donation."""
  return jax.tree.map(np.asarray, jax.device_get(tree))


class StepsInFlight:
  """A queue that bounds the number of dispatched, unfinished steps.

  Unbounded dispatch deadlocks several CPU devices (the rendezvous of a collective starves), and
  waiting for every step leaves the device idle; results are therefore read `limit` steps late.
  """

  def __init__(self, limit: int = 2) -> None:
    self._limit = limit
    self._pending: collections.deque[Any] = collections.deque()

  def push(self, result: Any) -> list[Any]:
    """Add a step's result; return those beyond the limit, as host values, oldest first."""
    self._pending.append(result)
    return self._read(self._limit)

  def drain(self) -> list[Any]:
    """Wait for all steps; return their results, oldest first."""
    return self._read(0)

  def _read(self, leave: int) -> list[Any]:
    count = max(0, len(self._pending) - leave)
    return [jax.device_get(self._pending.popleft()) for _ in range(count)]
