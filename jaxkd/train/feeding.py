"""Where a stage's steps get their examples: from the host, or from devices that hold them all."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxkd.data.pipeline import training_batches
from jaxkd.errors import ConfigError
from jaxkd.train import devices as mapping
from jaxkd.train.cached_targets import CachedTargets
from jaxkd.train.reporting import Reporter
from jaxkd.train.resident import Resident, resident_examples
from jaxkd.train.stages import Stage
from jaxkd.train.state import TrainState
from jaxkd.types import Batch


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
    cache = CachedTargets(stage, shapes, devices) if stage.cached_targets else None
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
      targets = self._cache.in_memory(state, reporter)
    elif self._cache is not None:
      assert self._directory is not None
      read = self._cache.on_disk(state, self._directory, reporter)
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
  def finish(self) -> Callable[..., Any] | None:
    """How cached targets become the loss, for `Stage.training_step`; None if there are none."""
    return self._cache.finish if self._cache is not None else None

  def next(self) -> Any:
    """What the next step is fed, for `mapping.shard`."""
    fed = next(self.iterator)
    if self._examples is not None:
      return fed
    return fed, self._stored(fed) if self._stored else None
