"""Which updates the host hands to the devices at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxkd.train import devices as mapping
from jaxkd.train.feeding import Feed
from jaxkd.train.state import TrainState

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
      step: per device, as for `map_training_step`.
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
    self._by_count = {
      count: mapping.map_training_step(step, devices, frozen=frozen, together=count)
      for count in {1, self._together}
    }

  def next(self, state: TrainState, resident: Any, done: int) -> tuple[TrainState, Any, int]:
    """Starts the next group after `done` steps; returns its state and metrics, and its length."""
    within = done % self._steps_per_epoch
    starts = within % self._together == 0 and within + self._together <= self._steps_per_epoch
    count = self._together if starts else 1
    fed = mapping.shard_together([self._feed.next() for _ in range(count)], self._devices)
    state, metrics = self._by_count[count](state, fed, resident)
    return state, metrics, count


def each_step(metrics: Any) -> Iterator[Any]:
  """The metrics of one step after the other, of a group that may be a single step.

  >>> [float(one["loss"][0]) for one in each_step({"loss": (np.array([3.0, 2.0]), np.ones(2))})]
  [3.0, 2.0]
  """
  leaves, structure = jax.tree.flatten(metrics)
  if np.ndim(leaves[0]) == 0:
    yield metrics
    return
  for values in zip(*leaves, strict=True):
    yield jax.tree.unflatten(structure, values)
