"""Checkpoints that resume a run exactly, with checksums against damage."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging as absl_logging
from etils import epath
from orbax import checkpoint as ocp

from jaxkd.errors import ConfigError, DiskError, one_line, writing
from jaxkd.runtime.mapping import host_copy
from jaxkd.runtime.processes import barrier, is_first_process, is_single_process
from jaxkd.train.orbax_logging import suppress_orbax_tracebacks
from jaxkd.train.state import TrainState
from jaxkd.types import Participants

# Written into each checkpoint; the name is that of earlier versions.
_CHECKSUMS = "digests.json"
# Orbax writes these two after the checksums, and does not need them to read a checkpoint.
_ABOUT, _COMMITTED = "_CHECKPOINT_METADATA", "commit_success.txt"


class _ChecksummedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
  """A checkpoint being written, which gets its checksums before its final name."""

  async def finalize(self) -> None:
    """Write the checksums, then rename the checkpoint."""
    folder = pathlib.Path(self.get())
    # Orbax finalizes the items, which are parts of a checkpoint, in the same way.
    if ocp.path.atomicity_types.TMP_DIR_SUFFIX not in folder.parent.name:
      await asyncio.to_thread(write_checksums, folder)
    await super().finalize()


def write_checksums(folder: pathlib.Path) -> None:
  """Write the checksum of every file below `folder` into a file there."""
  (folder / _CHECKSUMS).write_text(json.dumps(_checksums(folder), indent=1, sort_keys=True))


def check_checksums(folder: pathlib.Path) -> None:
  """Read every file of a checkpoint and compare its checksum.

  A folder without checksums, as earlier versions left them, passes.

  Raises:
    ValueError: naming the first file that is missing or damaged.
  """
  try:
    json.loads((folder / _ABOUT).read_text())
  except (OSError, ValueError) as error:
    raise ValueError(f"{_ABOUT} is damaged ({error})") from error
  if not (folder / _CHECKSUMS).exists():
    return
  try:
    written = dict(json.loads((folder / _CHECKSUMS).read_text()))
  except (ValueError, TypeError) as error:
    raise ValueError(f"{_CHECKSUMS} is damaged ({error})") from error
  found = _checksums(folder)
  for name, checksum in written.items():
    if name not in found:
      raise ValueError(f"{name} is missing")
    if found[name] != checksum:
      raise ValueError(f"{name} is not what was written")


def _checksums(folder: pathlib.Path) -> dict[str, str]:
  found = {}
  for path in sorted(folder.rglob("*")):
    name = path.relative_to(folder).as_posix()
    if path.is_file() and name not in (_CHECKSUMS, _ABOUT, _COMMITTED):
      with path.open("rb") as file:
        found[name] = hashlib.file_digest(file, "sha256").hexdigest()
  return found


class Restored(NamedTuple):
  """The content of a checkpoint.

  Attributes:
    state: the training state.
    best: the participants with the best validation accuracy, as they predict.
    progress: the loop's position: metric sums of the running epoch, the best score so far.
  """

  state: TrainState
  best: Participants
  progress: dict[str, Any]


class Checkpoints:
  """The checkpoints of one phase in one directory.

  State, best participants, data iterator and progress are items of one checkpoint, which orbax
  makes visible only once it is complete, so that they always agree. The last `keep` are kept, and
  all damaged ones.

  A checkpoint does not depend on the number of processes or devices that write it, and any number
  can read it: arrays are the same everywhere, and so is the iterator's position in its stream of
  global batches.

  In a `with` block, checkpoints are closed at the end, except after an error where there are
  several processes: closing waits for the others, which may have caused it.
  """

  def __init__(self, directory: pathlib.Path, *, keep: int = 2) -> None:
    self._directory = directory
    self._end_suppression = suppress_orbax_tracebacks()
    self._failed = False
    with writing(directory):
      self._manager = ocp.CheckpointManager(
        epath.Path(directory.absolute()),
        options=ocp.CheckpointManagerOptions(
          max_to_keep=keep,
          temporary_path_class=_ChecksummedPath,
          lightweight_initialize=True,  # otherwise it reads, and logs, damaged ones
        ),
      )

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
    if is_single_process() or not isinstance(error, Exception):
      self.close()

  def save(
    self,
    step: int,
    state: TrainState,
    best: Participants,
    progress: dict[str, Any],
    iterator: Any,
  ) -> None:
    """Start saving; return once everything is copied from the devices.

    Raises:
      DiskError: if this checkpoint or the one before cannot be written.
      RuntimeError: if orbax declined to save.
    """
    arguments = ocp.args.Composite(
      # Orbax would write a part of an array from each device, by slices compiled for every shape,
      # and refuses arrays of one process if there are several.
      state=ocp.args.StandardSave(host_copy(state)),
      best=ocp.args.StandardSave(host_copy(best)),
      # A copy: it is written in the background, while the loop changes it.
      progress=ocp.args.JsonSave(copy.deepcopy(progress)),
      data=ocp.args.JsonSave(copy.deepcopy(iterator.get_state())),
    )
    with self._writing():
      saved = self._manager.save(step, args=arguments)
    if not saved:
      raise RuntimeError(f"checkpoint {step} was not saved in {self._directory}")

  def restore(self, state: TrainState, iterator: Any) -> Restored | None:
    """Return the newest checkpoint that can be read, or None if there are no checkpoints.

    Newer ones that cannot be read are renamed to STEP.damaged, so that their steps can be saved
    again.

    Args:
      state: a state of the right shapes; its values are not used.
      iterator: the data iterator, set to the checkpoint's position.

    Raises:
      ConfigError: if there are checkpoints but none can be read. Nothing is deleted or renamed.
    """
    problems: dict[int, str] = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        restored = self._restore_step(step, state, iterator)
      except Exception as error:  # Damage causes errors of many types.
        problems[step] = _reason(error)
      else:
        if problems:
          absl_logging.warning(
            "%s: %s; going on from checkpoint %d", self._directory, _joined(problems), step
          )
          self._rename_damaged(problems)
        return restored
    if problems:
      raise _none_readable(self._directory, problems)
    return None

  def _restore_step(self, step: int, state: TrainState, iterator: Any) -> Restored:
    check_checksums(self._directory / str(step))
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
    """Return the data iterator's position."""
    folder = epath.Path(self._directory.absolute()) / str(step) / "data"
    # In earlier versions every process wrote its own file, all with the same content.
    files = sorted(folder.glob("process_*-of-*.json"))
    if files:
      return json.loads(files[0].read_text())
    return self._manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore()))["data"]

  def forget(self, step: int) -> None:
    """Delete one checkpoint."""
    self._manager.delete(step)

  def _rename_damaged(self, steps: Mapping[int, str]) -> None:
    """Rename checkpoints; orbax saves no step that exists, or that is older than the latest."""
    if is_first_process():
      for step in steps:
        folder = self._directory / str(step)
        names = (f"{step}.damaged{n}" for n in ("", *(f"-{n}" for n in range(2, 1000))))
        free = next(name for name in names if not (self._directory / name).exists())
        with writing(folder):
          folder.rename(self._directory / free)
    barrier("damaged checkpoints renamed")
    self._manager.reload()

  def wait(self) -> None:
    """Wait until every started save is on disk.

    Raises:
      DiskError: if one cannot be written.
    """
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Wait for saves and end orbax's threads; raises as `wait`."""
    with self._writing():
      self._manager.close()
    # After a failed write, more errors arrive later.
    if not self._failed:
      self._end_suppression()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except (OSError, ValueError, RuntimeError) as error:  # tensorstore's, on a full disk
      self._failed = True
      reason = _system_reason(error) or _reason(error)
      raise DiskError(f"checkpoints in {self._directory} cannot be written: {reason}") from error


def check_checkpoints(directory: pathlib.Path) -> None:
  """Check whether a phase with checkpoints in `directory` can be resumed; change nothing.

  Raises:
    ConfigError: if there are checkpoints, and all are damaged.
  """
  steps = [int(path.name) for path in directory.glob("*") if path.name.isdigit()]
  problems: dict[int, str] = {}
  for step in sorted(steps, reverse=True):
    try:
      check_checksums(directory / str(step))
    except (OSError, ValueError) as error:
      problems[step] = _reason(error)
    else:
      return
  if problems:
    raise _none_readable(directory, problems)


def _none_readable(directory: pathlib.Path, problems: Mapping[int, str]) -> ConfigError:
  return ConfigError(f"no checkpoint in {directory} can be read: {_joined(problems)}")


def _joined(problems: Mapping[int, str]) -> str:
  return "; ".join(f"checkpoint {step}: {reason}" for step, reason in problems.items())


def _reason(error: Exception) -> str:
  return one_line(error)[:200]


def _system_reason(error: Exception) -> str | None:
  """Return the operating system's reason for an error, if there is one."""
  found = re.search(r"\[os_error_code='(\d+)'\]", str(error))  # tensorstore's notation
  return os.strerror(int(found[1])) if found else getattr(error, "strerror", None)


def _on_any_devices(leaf: Any) -> jax.ShapeDtypeStruct:
  """The shape and placement with which an array is read; the devices that wrote it do not count."""
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("all",))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  layout = one if jax.process_count() == 1 else everywhere
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)
