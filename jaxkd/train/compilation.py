"""What compiling costs: programs are kept on disk for later processes, and the time is told."""

from __future__ import annotations

import os
import pathlib
from types import TracebackType
from typing import Any

from jaxkd.errors import needed_by

with needed_by("jaxkd.train.compilation"):
  import filelock

import jax

# The least recently used programs go when there are more.
_MOST_BYTES = 4 * 2**30


def remember_programs() -> pathlib.Path | None:
  """Has jax keep what it compiles on disk, so that later processes load it in place of compiling.

  Within a process, too, networks that are equal are then compiled once. What took less than a tenth
  of a second is not kept (JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS), and nothing is with
  JAX_ENABLE_COMPILATION_CACHE=false.

  Returns:
    Where: the folder that jax was told of before (JAX_COMPILATION_CACHE_DIR), else jaxkd/programs
    in XDG_CACHE_HOME or in ~/.cache; or None if that cannot be written, for it is a convenience.
  """
  config: Any = jax.config  # whose fields are not declared
  told = config.jax_compilation_cache_dir
  if told:
    return pathlib.Path(told)
  home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path("~/.cache").expanduser()
  folder = pathlib.Path(home) / "jaxkd" / "programs"
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return None
  if not os.access(folder, os.W_OK):
    return None
  remember_programs_in(folder)
  return folder


def remember_programs_in(folder: pathlib.Path) -> None:
  """The same in a folder of the caller's, whatever jax was told of before."""
  jax.config.update("jax_compilation_cache_dir", str(folder))
  # With a limit jax also locks the folder: no process then reads what another is writing.
  jax.config.update("jax_compilation_cache_max_size", _MOST_BYTES)
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  # XLA's own files beside jax's would neither be locked nor ever go.
  jax.config.update("jax_persistent_cache_enable_xla_caches", "")
  _remove_half_written(folder)


def _remove_half_written(folder: pathlib.Path) -> None:
  """Removes programs whose writing was cut short, such as by SIGKILL.

  Jax would warn of them at every start and never replace them. It writes when a program was used
  after the program itself, and as long as one lacks that it fails to add any other.
  """
  if not folder.is_dir():
    return
  with filelock.FileLock(folder / ".lockfile"):  # jax's own
    for program in folder.glob("*-cache"):
      if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
        program.unlink()


class Stopwatch:
  """Counts the seconds that jax traces, lowers and compiles, or loads what was compiled before.

  >>> with Stopwatch() as compiling:
  ...   three = jax.jit(lambda x: x + 2)(1)
  >>> compiling.seconds > 0
  True

  """

  def __init__(self) -> None:
    self._spans: list[tuple[float, float]] = []

  @property
  def seconds(self) -> float:
    """So far. What is traced while something else is, or at the same time, counts once."""
    total, counted = 0.0, 0.0
    for start, end in sorted(self._spans):
      total += max(0.0, end - max(start, counted))
      counted = max(counted, end)
    return total

  def __enter__(self) -> Stopwatch:
    jax.monitoring.register_event_time_span_listener(self._heard)
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    jax.monitoring.unregister_event_time_span_listener(self._heard)

  def _heard(self, event: str, start_time: float, end_time: float, **_: Any) -> None:
    if event.startswith("/jax/core/compile/"):
      self._spans.append((start_time, end_time))
