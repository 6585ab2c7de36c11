"""Which updates the host hands to the devices at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.train import devices as mapping
from jaxkd.train.feeding import Feed
from jaxkd.train.state import TrainState
from jaxkd.types import Array

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
      count: mapping.map_training_step(telling, devices, frozen=frozen, together=count)
      for count in {1, self._together}
    }

  def next(self, state: TrainState, resident: Any, done: int) -> tuple[TrainState, Told, int]:
    """Starts the next group after `done` steps; returns its state, what it tells, its length."""
    within = done % self._steps_per_epoch
    starts = within % self._together == 0 and within + self._together <= self._steps_per_epoch
    count = self._together if starts else 1
    fed = mapping.shard_together([self._feed.next() for _ in range(count)], self._devices)
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
