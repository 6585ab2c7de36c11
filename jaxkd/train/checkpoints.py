"""Checkpoints that resume a run exactly, with checksums against damage."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import hashlib
import json
import logging
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging as absl_logging
from etils import epath
from orbax import checkpoint as ocp

from jaxkd.errors import ConfigError, DiskError, one_line, writing
from jaxkd.runtime.mapping import host_copy
from jaxkd.runtime.processes import barrier, is_first_process
from jaxkd.train.state import TrainState
from jaxkd.types import Participants

_LOGGERS = (absl_logging.get_absl_logger(), logging.getLogger("asyncio"))


class QuietOrbax:
  """From `start` to `stop`, no tracebacks of errors that reach the caller anyway.

  Orbax logs them; and once the first of many reads or writes has failed, it asks nobody else what
  became of theirs, and closes the event loop to which they report. Python logs the one, and tells
  of the other as an error nobody can catch.
  """

  def __init__(self) -> None:
    self._before: Any = None

  def start(self) -> None:
    """Begins to hold back."""
    for logger in _LOGGERS:
      logger.addFilter(_is_news)
    self._before = sys.unraisablehook
    sys.unraisablehook = self._told

  def stop(self) -> None:
    """Leaves everything as it was."""
    for logger in _LOGGERS:
      logger.removeFilter(_is_news)
    sys.unraisablehook = self._before

  def _told(self, unraisable: Any) -> None:
    if not _is_late(unraisable.exc_value, unraisable.exc_traceback):
      self._before(unraisable)


def _is_news(record: logging.LogRecord) -> bool:
  if record.name == "asyncio":  # which names the file that was to be written
    return ".orbax-checkpoint" not in record.getMessage()
  return not (record.exc_info and "/orbax/" in record.pathname)


def _is_late(error: BaseException | None, where: TracebackType | None) -> bool:
  """Whether it comes from a callback to an event loop that is closed."""
  in_asyncio = where is not None and "asyncio" in where.tb_frame.f_code.co_filename
  return in_asyncio and isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


_SEAL = "digests.json"
# Orbax writes these two after the seal, and needs neither to read a checkpoint.
_ABOUT, _COMMITTED = "_CHECKPOINT_METADATA", "commit_success.txt"


class Sealed(ocp.path.atomicity.AtomicRenameTemporaryPath):
  """A checkpoint being written, which is sealed before it gets its name: none is without."""

  async def finalize(self) -> None:
    """Seals it, and lets it appear."""
    folder = pathlib.Path(self.get())
    # Orbax does the same with its items, which are parts of it.
    if ocp.path.atomicity_types.TMP_DIR_SUFFIX not in folder.parent.name:
      await asyncio.to_thread(seal, folder)
    await super().finalize()


def seal(folder: pathlib.Path) -> None:
  """Writes a digest of every file below `folder` into it."""
  (folder / _SEAL).write_text(json.dumps(_digests(folder), indent=1, sort_keys=True))


def check_seal(folder: pathlib.Path) -> None:
  """Reads every file that was sealed.

  A folder without a seal, as earlier versions left them, passes.

  Raises:
    ValueError: naming the first file that is not what it was.
  """
  try:
    json.loads((folder / _ABOUT).read_text())
  except (OSError, ValueError) as error:
    raise ValueError(f"{_ABOUT} is damaged ({error})") from error
  if not (folder / _SEAL).exists():
    return
  try:
    sealed = dict(json.loads((folder / _SEAL).read_text()))
  except (ValueError, TypeError) as error:
    raise ValueError(f"{_SEAL} is damaged ({error})") from error
  found = _digests(folder)
  for name, digest in sealed.items():
    if name not in found:
      raise ValueError(f"{name} is missing")
    if found[name] != digest:
      raise ValueError(f"{name} is not what was written")


def _digests(folder: pathlib.Path) -> dict[str, str]:
  found = {}
  for path in sorted(folder.rglob("*")):
    name = path.relative_to(folder).as_posix()
    if path.is_file() and name not in (_SEAL, _ABOUT, _COMMITTED):
      with path.open("rb") as file:
        found[name] = hashlib.file_digest(file, "sha256").hexdigest()
  return found


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
  makes visible only once it is complete: they can never disagree. The last `keep` are kept, and
  whatever is found damaged (`jaxkd.train.checkpoints`).

  Nothing in a checkpoint depends on how many processes or devices wrote it, and any number of
  them can read it: arrays are the same everywhere, and so is the iterator's position in its stream
  of global batches.
  """

  def __init__(self, directory: pathlib.Path, *, keep: int = 2) -> None:
    self._directory = directory
    self._quiet = QuietOrbax()
    self._quiet.start()
    self._failed = False
    with writing(directory):
      self._manager = ocp.CheckpointManager(
        epath.Path(directory.absolute()),
        options=ocp.CheckpointManagerOptions(
          max_to_keep=keep,
          temporary_path_class=Sealed,
          lightweight_initialize=True,  # else it would read, and log, what is damaged
        ),
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
      DiskError: if this checkpoint or the one before cannot be written.
      RuntimeError: if orbax declined to save.
    """
    arguments = ocp.args.Composite(
      # Of arrays on several devices orbax would write a part from each, by slices compiled for
      # every shape; and it refuses those that are one process's where there are several.
      state=ocp.args.StandardSave(host_copy(state)),
      best=ocp.args.StandardSave(host_copy(best)),
      # A copy: it is written in the background, while the loop goes on counting.
      progress=ocp.args.JsonSave(copy.deepcopy(progress)),
      data=ocp.args.JsonSave(copy.deepcopy(iterator.get_state())),
    )
    with self._writing():
      saved = self._manager.save(step, args=arguments)
    if not saved:
      raise RuntimeError(f"checkpoint {step} was not saved in {self._directory}")

  def restore(self, state: TrainState, iterator: Any) -> Restored | None:
    """The newest checkpoint that can be read, or None if there is none at all.

    Newer ones that cannot are renamed to STEP.damaged, out of the way of those still to be saved.

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
      except Exception as error:  # Damage surfaces as whatever the reader stumbled over.
        problems[step] = _reason(error)
      else:
        if problems:
          absl_logging.warning(
            "%s: %s; going on from checkpoint %d", self._directory, _told(problems), step
          )
          self._set_aside(problems)
        return restored
    if problems:
      raise _none_is_good(self._directory, problems)
    return None

  def _restore_step(self, step: int, state: TrainState, iterator: Any) -> Restored:
    check_seal(self._directory / str(step))
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

  def _set_aside(self, steps: Mapping[int, str]) -> None:
    """Renames checkpoints; orbax saves no step that exists, or that is older than the latest."""
    if is_first_process():
      for step in steps:
        folder = self._directory / str(step)
        names = (f"{step}.damaged{n}" for n in ("", *(f"-{n}" for n in range(2, 1000))))
        free = next(name for name in names if not (self._directory / name).exists())
        with writing(folder):
          folder.rename(self._directory / free)
    barrier("damaged checkpoints set aside")
    self._manager.reload()

  def wait(self) -> None:
    """Returns once every save begun is on disk.

    Raises:
      DiskError: if one cannot be written.
    """
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for saves and gives back threads; raises as `wait`."""
    with self._writing():
      self._manager.close()
    # After an error the others come when it has long been told.
    if not self._failed:
      self._quiet.stop()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except (OSError, ValueError, RuntimeError) as error:  # What tensorstore makes of a full disk.
      self._failed = True
      reason = _of_system(error) or _reason(error)
      raise DiskError(f"checkpoints in {self._directory} cannot be written: {reason}") from error


def check_checkpoints(directory: pathlib.Path) -> None:
  """Looks whether a stage whose checkpoints are in `directory` can go on, and changes nothing.

  Raises:
    ConfigError: if there are checkpoints, and all are damaged.
  """
  steps = [int(path.name) for path in directory.glob("*") if path.name.isdigit()]
  problems: dict[int, str] = {}
  for step in sorted(steps, reverse=True):
    try:
      check_seal(directory / str(step))
    except (OSError, ValueError) as error:
      problems[step] = _reason(error)
    else:
      return
  if problems:
    raise _none_is_good(directory, problems)


def _none_is_good(directory: pathlib.Path, problems: Mapping[int, str]) -> ConfigError:
  return ConfigError(f"no checkpoint in {directory} can be read: {_told(problems)}")


def _told(problems: Mapping[int, str]) -> str:
  return "; ".join(f"checkpoint {step}: {reason}" for step, reason in problems.items())


def _reason(error: Exception) -> str:
  return one_line(error)[:200]


def _of_system(error: Exception) -> str | None:
  """What the operating system said, if it had a part in an error."""
  found = re.search(r"\[os_error_code='(\d+)'\]", str(error))  # as tensorstore tells it
  return os.strerror(int(found[1])) if found else getattr(error, "strerror", None)


def _on_any_devices(leaf: Any) -> jax.ShapeDtypeStruct:
  """How to read an array, on whatever devices it was saved from."""
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("all",))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  layout = one if jax.process_count() == 1 else everywhere
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)
