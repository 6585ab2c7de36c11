"""Checkpoints of a stage: all that changes, saved asynchronously, several generations kept."""

from __future__ import annotations

import copy
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath
from orbax import checkpoint as ocp

from jaxkd.errors import ConfigError
from jaxkd.train.devices import host_copy
from jaxkd.train.state import TrainState
from jaxkd.types import Participants


class Restored(NamedTuple):
  """What a checkpoint holds.

  Attributes:
    state: the training state.
    best: the participants that were best on validation, as they predict.
    progress: the loop's own position: metric sums of the running epoch, the best score so far.
  """

  state: TrainState
  best: Participants
  progress: dict[str, Any]


class Checkpoints:
  """The checkpoints of one stage in one directory.

  State, best participants, data iterator and progress are items of one checkpoint, which orbax
  makes visible only once it is complete: they can never disagree. The last `keep` are kept.

  Nothing in a checkpoint depends on how many processes or devices wrote it, and any number of
  them can read it: arrays are the same everywhere, and so is the iterator's position in its stream
  of global batches.
  """

  def __init__(self, directory: pathlib.Path, *, keep: int = 2) -> None:
    self._directory = directory
    self._manager = ocp.CheckpointManager(
      epath.Path(directory.absolute()),
      options=ocp.CheckpointManagerOptions(max_to_keep=keep),
    )

  def save(
    self,
    step: int,
    state: TrainState,
    best: Participants,
    progress: dict[str, Any],
    iterator: Any,
  ) -> None:
    """Starts saving; returns once everything is copied from the devices.

    Raises:
      RuntimeError: if orbax declined to save.
    """
    if step in self._manager.all_steps():
      return
    saved = self._manager.save(
      step,
      args=ocp.args.Composite(
        # Of arrays on several devices orbax would write a part from each, by slices compiled for
        # every shape; and it refuses those that are one process's where there are several.
        state=ocp.args.StandardSave(host_copy(state)),
        best=ocp.args.StandardSave(host_copy(best)),
        # A copy: it is written in the background, while the loop goes on counting.
        progress=ocp.args.JsonSave(copy.deepcopy(progress)),
        data=ocp.args.JsonSave(copy.deepcopy(iterator.get_state())),
      ),
    )
    if not saved:
      raise RuntimeError(f"checkpoint {step} was not saved in {self._directory}")

  def restore(self, state: TrainState, iterator: Any) -> Restored | None:
    """The newest checkpoint that can be read, or None if there is none at all.

    Args:
      state: a state of the right shapes; its values are not used.
      iterator: the data iterator, set to the checkpoint's position.

    Raises:
      ConfigError: if there are checkpoints but none can be read. Nothing is deleted.
    """
    problems = []
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        restored = self._restore_step(step, state, iterator)
      except Exception as error:  # Damage surfaces as whatever the reader stumbled over.
        reason = str(error).strip() or type(error).__name__
        problems.append(f"checkpoint {step}: {' '.join(reason.split())[:200]}")
        logging.warning("%s cannot be read, trying an older one: %s", self._directory, problems[-1])
      else:
        return restored
    if problems:
      raise ConfigError(f"no checkpoint in {self._directory} can be read: {'; '.join(problems)}")
    return None

  def _restore_step(self, step: int, state: TrainState, iterator: Any) -> Restored:
    template = jax.tree.map(_on_any_devices, state)
    items = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(template),
        best=ocp.args.StandardRestore(template.participants),
        progress=ocp.args.JsonRestore(),
      ),
    )
    iterator.set_state(self._iterator_state(step))
    return Restored(items["state"], items["best"], items["progress"])

  def _iterator_state(self, step: int) -> dict[str, Any]:
    """Where the data iterator stood."""
    folder = epath.Path(self._directory.absolute()) / str(step) / "data"
    # Earlier versions let every process write a file of its own; their contents are the same.
    files = sorted(folder.glob("process_*-of-*.json"))
    if files:
      return json.loads(files[0].read_text())
    return self._manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore()))["data"]

  def forget(self, step: int) -> None:
    """Deletes one checkpoint."""
    self._manager.delete(step)

  def wait(self) -> None:
    """Returns once every save begun is on disk; raises what a save raised."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for saves and gives back threads."""
    self._manager.close()


def _on_any_devices(leaf: Any) -> jax.ShapeDtypeStruct:
  """How to read an array, on whatever devices it was saved from."""
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("all",))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  layout = one if jax.process_count() == 1 else everywhere
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)
