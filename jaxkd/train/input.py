"""Where the steps of a phase get their examples, and how many are started at once."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.cache.targets import CachedTargets
from jaxkd.data.examples import UNLABELLED, ArrayExamples, Examples
from jaxkd.data.pipeline import training_batches
from jaxkd.errors import ConfigError
from jaxkd.runtime import mapping
from jaxkd.train.phase import Stage
from jaxkd.train.reporting import Reporter
from jaxkd.train.state import TrainState
from jaxkd.types import Array, Batch, Places


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Resident:
  """Arrays that every device holds from the first step to the last.

  Attributes:
    examples: all N of a stage as one batch, or None where batches bring theirs.
    targets: of all examples and views, (views, N, ...) each, or None where nothing is cached.
  """

  examples: Batch | None = None
  targets: Any = None


def resident_examples(examples: Examples, limit: int) -> Batch | None:
  """All examples as one batch on the host, if they are in memory and within `limit` bytes."""
  if not isinstance(examples, ArrayExamples) or examples.images.nbytes > limit:
    return None
  return Batch(
    images=examples.images,
    labels=examples.labels,
    weights=(examples.labels != UNLABELLED).astype(np.float32),
    indices=examples.indices,
  )


def reading(
  step: Callable[[Any, Batch, Any], Any], views: int
) -> Callable[[Any, Places | tuple[Batch, Any], Resident], Any]:
  """A step that is told what of the resident arrays to work on.

  Args:
    step: (state, batch, stored targets) -> results, per device.
    views: in how many ways targets are stored of an example; 0 is one.

  Returns:
    (state, places or (batch, stored targets or None), resident) -> results.
  """

  def read(state: Any, fed: Places | tuple[Batch, Any], resident: Resident) -> Any:
    if not isinstance(fed, Places):
      return step(state, *fed)
    batch = jax.tree.map(lambda x: jnp.take(x, fed.positions, axis=0), resident.examples)
    batch = dataclasses.replace(batch, epochs=fed.epochs)
    where = (fed.epochs % max(views, 1), fed.positions)
    stored = jax.tree.map(lambda x: x.at[where].get(mode="clip"), resident.targets)
    return step(state, batch, stored)

  return read


class Feed:
  """A stage's training examples, in the order of a stream that checkpoints can restore.

  Attributes:
    iterator: over the batches, or over their places where devices hold the examples.
  """

  def __init__(
    self,
    stage: Stage,
    shapes: TrainState,
    devices: Sequence[jax.Device],
    *,
    directory: pathlib.Path | None = None,
  ) -> None:
    """Decides what devices hold; nothing is read or computed.

    Args:
      stage: to be trained.
      shapes: of its state.
      devices: of this process.
      directory: where cached targets go that devices do not hold.

    Raises:
      ConfigError: if the stage is to cache targets that cannot be (`CachedTargets`), or that need a
        directory and have none.
    """
    self._devices = devices
    cache = CachedTargets(stage, shapes.participants, devices) if stage.cached_targets else None
    self._cache = cache if cache and cache.bytes else None
    left = stage.resident_bytes - (self._cache.bytes if self._cache else 0)
    self._examples = resident_examples(stage.examples, left)
    if self._cache is not None and self._examples is None and directory is None:
      raise ConfigError(
        f"targets=None: expected a directory, since images and targets of stage {stage.name!r} are "
        f"more than the {stage.resident_bytes} bytes that devices hold"
      )
    self._all = stage.examples.indices
    self._directory = directory
    self._stored: Callable[[Batch], Any] | None = None
    self.iterator = training_batches(
      stage.examples,
      batch_size=stage.batch_size // jax.process_count(),
      seed=stage.seed,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      places=self._examples is not None,
    )

  def open(self, state: TrainState, reporter: Reporter) -> Resident:
    """Computes the targets that are cached; returns what devices hold, placed there.

    Args:
      state: the stage's, whose frozen participants are final.
      reporter: told what was computed.
    """
    targets = None
    if self._cache is not None and self._examples is not None:
      targets = self._cache.in_memory(state.rng, state.participants, reporter.told)
    elif self._cache is not None:
      assert self._directory is not None
      read = self._cache.on_disk(state.rng, state.participants, self._directory, reporter.told)
      order = np.argsort(self._all)
      self._stored = lambda batch: read(
        order[np.searchsorted(self._all, batch.indices, sorter=order)], batch.epochs
      )
    return mapping.replicate(Resident(self._examples, targets), self._devices)

  @property
  def is_resident(self) -> bool:
    """Whether devices hold the examples, so that steps are fed a few numbers."""
    return self._examples is not None

  @property
  def loss_from_cache(self) -> Callable[..., Any] | None:
    """How cached targets become the loss, for `Stage.training_step`; None if there are none."""
    return self._cache.loss_from_cache if self._cache is not None else None

  def next(self) -> Any:
    """What the next step is fed, for `mapping.shard`."""
    fed = next(self.iterator)
    if self._examples is not None:
      return fed
    return fed, self._stored(fed) if self._stored else None


# A program on an accelerator takes the host a fraction of a millisecond to start, which small
# networks would wait for at every step.
_ON_ACCELERATORS = 8


class Dispatch:
  """Hands over a stage's steps, one at a time or several in one program.

  Groups of steps start at multiples of their length within an epoch, and the steps after an epoch's
  last full group are made one at a time: the same steps are grouped wherever a run is resumed, and
  no more than two programs are compiled.
  """

  def __init__(
    self,
    step: Callable[..., tuple[TrainState, Any]],
    feed: Feed,
    devices: Sequence[jax.Device],
    *,
    frozen: Sequence[str],
    together: int,
    steps_per_epoch: int,
  ) -> None:
    """Compiles nothing yet.

    Args:
      step: per device, as for `map_training_step`; all it tells are numbers.
      feed: of what each step is fed.
      devices: that share each step.
      frozen: participants that no step changes.
      together: steps of a group; 0 for one on the CPU, where XLA runs the convolutions of a loop
        many times slower, and on accelerators eight where they hold the examples, else one.
      steps_per_epoch: after so many the host wants the metrics.
    """
    if not together:
      on_host = devices[0].platform == "cpu" or not feed.is_resident
      together = 1 if on_host else _ON_ACCELERATORS
    self._together = min(together, steps_per_epoch)
    self._steps_per_epoch = steps_per_epoch
    self._feed = feed
    self._devices = devices

    def telling(*arguments: Any) -> tuple[TrainState, Told]:
      state, metrics = step(*arguments)
      return state, told(metrics)

    self._by_count = {
      count: mapping.map_training_step(telling, devices, frozen=frozen, steps_per_call=count)
      for count in {1, self._together}
    }

  def next(self, state: TrainState, resident: Any, done: int) -> tuple[TrainState, Told, int]:
    """Starts the next group after `done` steps; returns its state, what it tells, its length."""
    within = done % self._steps_per_epoch
    starts = within % self._together == 0 and within + self._together <= self._steps_per_epoch
    count = self._together if starts else 1
    fed = mapping.shard_steps([self._feed.next() for _ in range(count)], self._devices)
    state, results = self._by_count[count](state, fed, resident)
    return state, results, count


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Told:
  """What a step tells, a tree of numbers, as one array.

  The host reads it at once; of twenty arrays each would take it a fifth of a millisecond, as long
  together as a small network's step needs for a third of its work.

  Attributes:
    numbers: (n,), or (steps, n), in the order of the tree's leaves.
    structure: of the tree.
  """

  numbers: Array
  structure: Any = dataclasses.field(metadata={"static": True})


def told(tree: Any) -> Told:
  """A tree of scalars as one array, of the widest of their types."""
  leaves, structure = jax.tree.flatten(tree)
  return Told(jnp.stack(leaves), structure)


def each_step(results: Told) -> Iterator[Any]:
  """What one step after the other told, of a group that may be a single step.

  >>> result = told({"loss": (jnp.float32(3.0), jnp.int32(1))})
  >>> [float(one["loss"][0]) for one in each_step(jax.device_get(result))]
  [3.0]
  """
  for numbers in results.numbers.reshape(-1, results.structure.num_leaves):
    yield jax.tree.unflatten(results.structure, list(numbers))
