"""The devices of a run: which are used, and how steps are mapped over them."""

from __future__ import annotations

import collections
import dataclasses
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import export, lax
from jax.experimental import multihost_utils

from jaxkd.errors import ConfigError
from jaxkd.types import Participants

AXIS_NAME = "devices"

# Seconds after which a process that is not heard of is taken for dead, and the others end.
_SILENCE = 30


def join_processes(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  mpi: bool = False,
) -> None:
  """Makes this process one of several. To be called before jax is first used.

  What is not given is asked of the cluster: jax knows TPU pods, Slurm, and Open MPI up to version
  4 by their environment. On GPUs the latter two then give each process the one device that is its
  own on its host.

  Args:
    coordinator: HOST:PORT of the first process.
    num_processes: how many processes take part.
    process_id: which of them this one is, from 0.
    mpi: whether to ask MPI itself, whichever it is, through the package mpi4py.

  Raises:
    ConfigError: if jax finds no cluster, or what it found is not enough.
  """
  handler = signal.getsignal(signal.SIGTERM)
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      cluster_detection_method="mpi4py" if mpi else None,
      heartbeat_timeout_seconds=_SILENCE,
    )
  except ImportError as error:
    raise ConfigError("--mpi needs mpi4py, which is not installed: pip install mpi4py") from error
  except ValueError as error:
    raise ConfigError(
      f"no cluster was found here ({error}); give --coordinator=HOST:PORT, --num_processes and "
      "--process_id"
    ) from error
  # Jax has taken it for a service of its own, which nobody here asks.
  signal.signal(signal.SIGTERM, handler)


def compile_fast() -> None:
  """Have XLA's CPU backend compile fast rather than well. To be called before jax is first used.

  For what is compiled and hardly run. Processes that are started afterwards do the same.
  """
  flags = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"


def map_training_step(
  step: Callable[..., tuple[Any, Any]],
  devices: Sequence[jax.Device],
  *,
  frozen: Sequence[str] = (),
  together: int = 1,
) -> Callable[..., tuple[Any, Any]]:
  """(state, sharded batch) -> (state, metrics), on every device; the given state is consumed.

  What is given beyond the batch is the same on all devices (`replicate`), and kept. The shapes of
  all arguments are those of the first call, by which the step is compiled.

  Args:
    step: per device, with the axis AXIS_NAME; its state is a dataclass with `participants`.
    devices: that take part.
    frozen: participants that `step` leaves as they are. They go in but not out, which spares
      handling their many arrays at every step, and they are not consumed.
    together: how many steps a call makes, one after the other in one program. If more than one,
      batches are those of `shard_together`, and metrics have an axis of steps in front.
  """

  def apart(
    state: Any, beside: tuple[Participants, tuple[Any, ...]], batch: Any
  ) -> tuple[Any, Any]:
    aside, shared = beside

    def one(state: Any, batch: Any) -> tuple[Any, Any]:
      state, metrics = step(_with_frozen(state, aside), batch, *shared)
      return _split(state, frozen)[0], metrics

    return one(state, batch) if together == 1 else lax.scan(one, state, batch)

  mapped = jax.pmap(
    apart,
    axis_name=AXIS_NAME,
    # No more arguments than this: with as many arrays as arguments, pmap takes each for an array.
    in_axes=(None, None, 0),
    out_axes=None,
    devices=devices if jax.process_count() == 1 else None,
    donate_argnums=0,
  )

  call = _compiled_once(mapped)

  def whole(state: Any, batch: Any, *shared: Any) -> tuple[Any, Any]:
    moving, aside = _split(state, frozen)
    moving, metrics = call(moving, (aside, shared), batch)
    return _with_frozen(moving, aside), metrics

  return whole


def _split(state: Any, frozen: Sequence[str]) -> tuple[Any, Participants]:
  """The state without some of its participants, and those."""
  rest = {name: v for name, v in state.participants.items() if name not in frozen}
  aside = {name: state.participants[name] for name in frozen}
  return dataclasses.replace(state, participants=rest), aside


def _with_frozen(state: Any, frozen: Participants) -> Any:
  """The inverse of `_split`."""
  return dataclasses.replace(state, participants={**state.participants, **frozen})


def _compiled_once(mapped: Any) -> Callable[..., Any]:
  """A mapped function that is compiled by its first arguments, whose shapes all others have.

  At every call, pmap goes over all arguments in Python before it comes to what it compiled, which
  shows in the steps of small networks. Only several processes need it to.
  """
  compiled: Callable[..., Any] | None = None

  def call(*arguments: Any) -> Any:
    nonlocal compiled
    if compiled is None:
      alone = jax.process_count() == 1
      compiled = mapped.lower(*arguments).compile() if alone else mapped
    return compiled(*arguments)

  return call


def map_evaluation_step(
  step: Callable[[Any, Any], Any], devices: Sequence[jax.Device]
) -> Callable[[Any, Any], Any]:
  """(participants, sharded batch) -> results pooled over the devices; nothing is consumed."""
  return _compiled_once(
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
  """(tree, sharded batch) -> results for each example, sharded as the batch; nothing is consumed.

  On this process's devices alone, where there are several processes.
  """
  return _compiled_once(jax.pmap(step, axis_name=AXIS_NAME, in_axes=(None, 0), devices=devices))


def lower(
  step: Callable[[Any, Any], Any],
  state: Any,
  batch: Any,
  *,
  devices: int,
  platforms: Sequence[str],
) -> export.Exported:
  """A mapped step, lowered from shapes alone for devices and platforms that need not be here.

  By `jax.shard_map`, since `jax.export` takes no pmap; the step and its collectives are the same.

  Args:
    step: per device, with the axis AXIS_NAME.
    state: the shapes and types of its first argument, which every device holds.
    batch: those of the whole batch, to be split over the devices.
    devices: how many; they must divide the batch.
    platforms: some of "cpu", "cuda", "rocm", "tpu".
  """
  mesh = jax.sharding.AbstractMesh((devices,), (AXIS_NAME,))
  everywhere, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(AXIS_NAME)
  # With check_vma=True gradients would be summed over the devices once more.
  mapped = jax.shard_map(
    step, mesh=mesh, in_specs=(everywhere, split), out_specs=everywhere, check_vma=False
  )
  layouts = (
    jax.sharding.NamedSharding(mesh, everywhere),
    jax.sharding.NamedSharding(mesh, split),
  )
  return export.export(jax.jit(mapped, in_shardings=layouts), platforms=platforms)(state, batch)


def shard(batch: Any, devices: Sequence[jax.Device]) -> Any:
  """Host arrays (B, ...) as (devices, B / devices, ...), the layout of a mapped step's batch."""
  count = len(devices)
  return jax.tree.map(lambda x: np.reshape(x, (count, x.shape[0] // count, *x.shape[1:])), batch)


def shard_together(batches: Sequence[Any], devices: Sequence[jax.Device]) -> Any:
  """The batches of several steps as (devices, steps, B / devices, ...), or one as `shard` does."""
  if len(batches) == 1:
    return shard(batches[0], devices)
  sharded = [shard(batch, devices) for batch in batches]
  return jax.tree.map(lambda *xs: np.stack(xs, axis=1), *sharded)


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
  """The tree on every device, laid out as a mapped step returns its state.

  A step handed another layout first would be compiled once for it and once more for its own.
  """
  mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS_NAME,))
  layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  # Through the host: placing a device's array would alias it, and donation then delete it.
  return jax.device_put(host_copy(tree), layout)


def host_copy(tree: Any) -> Any:
  """The tree as numpy arrays: safe from donation, and independent of any device."""
  return jax.tree.map(np.asarray, jax.device_get(tree))


def is_first_process() -> bool:
  """Whether this process writes files and talks, where there are several."""
  return jax.process_index() == 0


def is_single_process() -> bool:
  """Whether this is the only process of its run."""
  return jax.process_count() == 1


def barrier(reason: str) -> None:
  """Returns once every process has come to the same place."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(reason)


def agree(flag: bool) -> bool:
  """The first process's flag, in every process: what a clock says differs between them."""
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.broadcast_one_to_all(np.asarray(flag)))


def any_process(flag: bool) -> bool:
  """Whether the flag is set in any process."""
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


class StepsInFlight:
  """Bounds the steps dispatched but not finished, and hands out their results late.

  Unbounded dispatch deadlocks several CPU devices (the rendezvous of a collective starves), and
  waiting for every step stalls the device; results are therefore read `limit` steps late.
  """

  def __init__(self, limit: int = 2) -> None:
    self._limit = limit
    self._pending: collections.deque[Any] = collections.deque()

  def push(self, result: Any) -> list[Any]:
    """Adds a step's result; returns those that had to be waited for, as host values."""
    self._pending.append(result)
    return self._read(self._limit)

  def drain(self) -> list[Any]:
    """Waits for all steps; returns their results, oldest first."""
    return self._read(0)

  def _read(self, leave: int) -> list[Any]:
    count = max(0, len(self._pending) - leave)
    return [jax.device_get(self._pending.popleft()) for _ in range(count)]


# Multiply-adds of a step's forward pass. Devices of a CPU wait for each other wherever statistics
# or gradients are pooled, some fifteen times in a ResNet-8, which took 5 to 6 ms on two cores,
# whatever the work. On two kinds of processors, two devices were the faster from about here on.
_WORTH_SHARING = 2e9


def set_cpu_devices(devices: int, batch_size: int) -> None:
  """Make the CPU appear to XLA as several devices. To be called before jax is first used.

  XLA runs a convolution with 32 or more channels on one core only; one device per core under the
  same mapped step uses them all.

  Args:
    devices: how many; 0 takes as many as there are cores and as divide `batch_size`.
    batch_size: examples of one step.
  """
  if not devices:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = next(n for n in range(max(1, cores or 1), 0, -1) if batch_size % n == 0)
  jax.config.update("jax_num_cpu_devices", devices)


def local_devices(count: int, batch_size: int, accumulate: int = 1) -> list[jax.Device]:
  """The devices of this process that share each step's batch.

  Args:
    count: how many; 0 takes all.
    batch_size: examples of one step over all processes.
    accumulate: parts into which each device's share is cut.

  Raises:
    ConfigError: if there are fewer devices, or the batch cannot be divided evenly.
  """
  devices = jax.local_devices()
  if count > len(devices):
    raise ConfigError(f"devices={count}: this machine has {len(devices)} ({devices[0].platform})")
  chosen = devices[: count or len(devices)]
  parts = len(chosen) * jax.process_count() * accumulate
  if batch_size % parts:
    over = f"{len(chosen)} devices x {jax.process_count()} processes x {accumulate} parts"
    raise ConfigError(f"batch_size={batch_size}: not divisible by {parts} ({over})")
  return chosen


def choose_devices(
  devices: Sequence[jax.Device], multiply_adds: Sequence[int | None], batch_size: int
) -> list[jax.Device]:
  """Those of some devices that are worth their while: all, or of a CPU's one if steps are small.

  Args:
    devices: that might share each step.
    multiply_adds: of an example's forward pass, for each of several kinds of steps; None for one
      that is not known, which counts as large.
    batch_size: examples of one step.
  """
  least = _WORTH_SHARING / batch_size
  small = all(work is not None and work < least for work in multiply_adds)
  if small and devices[0].platform == "cpu" and jax.process_count() == 1:
    return list(devices[:1])
  return list(devices)
