"""Input of a phase's steps: examples that devices hold or are fed, and steps started in groups."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.cache.targets import CachedTargets
from jaxkd.data.examples import UNLABELLED, ArrayExamples, Examples
from jaxkd.data.pipeline import training_batches
from jaxkd.data.trees import TreeExamples
from jaxkd.errors import ConfigError
from jaxkd.runtime import mapping
from jaxkd.tables import gather
from jaxkd.train.fed_tables import FedTables
from jaxkd.train.packed_metrics import PackedMetrics, pack
from jaxkd.train.phase import Phase
from jaxkd.train.reporting import Reporter
from jaxkd.train.state import TrainState
from jaxkd.types import Batch, BatchIndices

# Resident arrays: small data sets stay on the device, and a step is fed indices.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Resident:
  """Arrays that every device holds during the whole phase.

  Attributes:
    examples: all N examples as one batch, or None if each step is fed its batch.
    targets: cached targets of all examples and views, (views, N, ...) each, or None.
    tables: participant -> the arrays of its table.
  """

  examples: Batch | None = None
  targets: Any = None
  tables: Any = dataclasses.field(default_factory=dict)


def resident_examples(examples: Examples, limit: int) -> Batch | None:
  """Return all examples as one batch on the host, if in memory and within `limit` bytes."""
  if isinstance(examples, ArrayExamples):
    inputs, size = examples.images, examples.images.nbytes
  elif isinstance(examples, TreeExamples):
    inputs, size = examples.inputs, examples.nbytes
  else:
    return None
  if size > limit:
    return None
  return Batch(
    inputs=inputs,
    labels=examples.labels,
    weights=(examples.labels != UNLABELLED).astype(np.float32),
    indices=examples.indices,
    mask=getattr(examples, "mask", None),
    multi_label=getattr(examples, "multi_label", False),
  )


def gather_batch(
  step: Callable[[Any, Batch, Any], Any], views: int
) -> Callable[[Any, BatchIndices | tuple[Batch, Any], Resident], Any]:
  """Return a step that gathers its batch from the resident arrays.

  Args:
    step: (state, batch, stored targets) -> results, per device.
    views: number of views for which targets are stored; 0 is one.

  Returns:
    (state, indices or (batch, stored targets or None), resident) -> results.
  """

  def gathered(state: Any, fed: BatchIndices | tuple[Batch, Any], resident: Resident) -> Any:
    if not isinstance(fed, BatchIndices):
      return step(state, *fed)
    batch = jax.tree.map(lambda x: jnp.take(x, fed.positions, axis=0), resident.examples)
    tables = {
      name: gather(arrays, batch.indices, fed.epochs) for name, arrays in resident.tables.items()
    }
    assert resident.examples is not None
    inputs = resident.examples.inputs
    others = {
      name: jax.tree.map(lambda x, at=at: jnp.take(x, at, axis=0), inputs)
      for name, at in fed.partners.items()
    }
    batch = dataclasses.replace(batch, epochs=fed.epochs, views=others, tables=tables)
    where = (fed.epochs % max(views, 1), fed.positions)
    stored = jax.tree.map(lambda x: x.at[where].get(mode="clip"), resident.targets)
    return step(state, batch, stored)

  return gathered


# The feed: what each step receives, in an order that checkpoints can restore.


class InputFeed:
  """Training examples of a phase, in the order of a stream that checkpoints can restore.

  Attributes:
    iterator: over the batches, or over `BatchIndices` if devices hold the examples.
  """

  def __init__(
    self,
    phase: Phase,
    shapes: TrainState,
    devices: Sequence[jax.Device],
    *,
    directory: pathlib.Path | None = None,
  ) -> None:
    """Decide which arrays devices hold; nothing is read or computed.

    Args:
      phase: the phase to train.
      shapes: shapes of its state.
      devices: devices of this process.
      directory: directory of cached targets that devices do not hold.

    Raises:
      ConfigError: if targets are to be cached that cannot be (`CachedTargets`), or that need a
        directory and have none; if a table does not fit the examples (`FedTables`).
    """
    self._devices = devices
    self._tables = FedTables(phase)
    cache = CachedTargets(phase, shapes.participants, devices) if phase.cached_targets else None
    self._cache = cache if cache and cache.bytes else None
    left = phase.resident_bytes - (self._cache.bytes if self._cache else 0) - self._tables.bytes
    self._examples = resident_examples(phase.examples, left)
    if self._cache is not None and self._examples is None and directory is None:
      raise ConfigError(
        f"targets=None: expected a directory, since inputs and targets of phase {phase.name!r} are "
        f"more than the {phase.resident_bytes} bytes that devices hold"
      )
    self._all = phase.examples.indices
    self._directory = directory
    self._stored: Callable[[Batch], Any] | None = None
    self.iterator = training_batches(
      phase.examples,
      batch_size=phase.batch_size // jax.process_count(),
      seed=phase.seed,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      places=self._examples is not None,
      partners=phase.partners,
    )

  def open(self, state: TrainState, reporter: Reporter) -> Resident:
    """Compute the cached targets, and return the resident arrays, placed on the devices.

    Args:
      state: the phase's state, whose frozen participants are final.
      reporter: receives a line with the size of the targets and the time taken.

    Raises:
      ConfigError: if a table is not the one that the phase began with.
    """
    self._tables.check(state.participants)
    targets = None
    if self._cache is not None and self._examples is not None:
      targets = self._cache.in_memory(state.rng, state.participants, reporter.message)
    elif self._cache is not None:
      assert self._directory is not None
      read = self._cache.on_disk(state.rng, state.participants, self._directory, reporter.message)
      order = np.argsort(self._all)
      self._stored = lambda batch: read(
        order[np.searchsorted(self._all, batch.indices, sorter=order)], batch.epochs
      )
    tables = self._tables.resident() if self.is_resident else {}
    return mapping.replicate(Resident(self._examples, targets, tables), self._devices)

  @property
  def is_resident(self) -> bool:
    """True if devices hold the examples, so that steps are fed indices only."""
    return self._examples is not None

  @property
  def loss_from_cache(self) -> Callable[..., Any] | None:
    """The loss of cached targets, for `Phase.monitored_step`; None if there are none."""
    return self._cache.loss_from_cache if self._cache is not None else None

  def next(self) -> Any:
    """Return the input of the next step, for `mapping.shard`."""
    fed = next(self.iterator)
    if self._examples is not None:
      return fed
    return self._tables.feed(fed), self._stored(fed) if self._stored else None


# Dispatch: how many steps one program makes.

# Starting a program on an accelerator takes the host a fraction of a millisecond, which is much of
# a small network's step.
_ON_ACCELERATORS = 8


class Dispatch:
  """Starts a phase's steps, one at a time or several in one program.

  Groups of steps start at multiples of their length within an epoch, and the steps after an epoch's
  last full group are made one at a time: the grouping does not depend on where a run is resumed,
  and at most two programs are compiled.
  """

  def __init__(
    self,
    step: Callable[..., tuple[TrainState, Any]],
    feed: InputFeed,
    devices: Sequence[jax.Device],
    *,
    frozen: Sequence[str],
    together: int,
    steps_per_epoch: int,
  ) -> None:
    """Compile nothing yet.

    Args:
      step: per device, as for `map_training_step`; its metrics are a tree of scalars.
      feed: the input of each step.
      devices: devices that share each step.
      frozen: participants that no step changes.
      together: steps of a group; 0 chooses: one on the CPU, where XLA runs the convolutions of a
        loop many times slower, and on accelerators eight if they hold the examples, else one.
      steps_per_epoch: a group does not extend over the end of an epoch.
    """
    if not together:
      on_host = devices[0].platform == "cpu" or not feed.is_resident
      together = 1 if on_host else _ON_ACCELERATORS
    self._together = min(together, steps_per_epoch)
    self._steps_per_epoch = steps_per_epoch
    self._feed = feed
    self._devices = devices

    def packed(*arguments: Any) -> tuple[TrainState, PackedMetrics]:
      state, metrics = step(*arguments)
      return state, pack(metrics)

    self._by_count = {
      count: mapping.map_training_step(packed, devices, frozen=frozen, steps_per_call=count)
      for count in {1, self._together}
    }

  def next(
    self, state: TrainState, resident: Any, done: int
  ) -> tuple[TrainState, PackedMetrics, int]:
    """Start the next group after `done` steps; return its state, metrics and length."""
    within = done % self._steps_per_epoch
    starts = within % self._together == 0 and within + self._together <= self._steps_per_epoch
    count = self._together if starts else 1
    fed = mapping.shard_steps([self._feed.next() for _ in range(count)], self._devices)
    state, results = self._by_count[count](state, fed, resident)
    return state, results, count
