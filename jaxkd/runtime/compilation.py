"""Compiled programs: jax's cache on disk, and the time that compilation takes."""

from __future__ import annotations

import os
import pathlib
from types import TracebackType
from typing import Any

import jax

from jaxkd.errors import needed_by

with needed_by("jaxkd.runtime.compilation"):
  import filelock

# Size limit of the cache; beyond it jax removes the least recently used programs.
_MAX_BYTES = 4 * 2**30


def enable_compilation_cache() -> pathlib.Path | None:
  """Make jax store compiled programs on disk, so that later processes load them.

  Equal networks of one process are then compiled once, too. Programs that compile in less than a
  tenth of a second are not stored (JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS), and none are with
  JAX_ENABLE_COMPILATION_CACHE=false.

  Returns:
    The folder: the one that jax is configured with (JAX_COMPILATION_CACHE_DIR), else jaxkd/programs
    in XDG_CACHE_HOME or in ~/.cache. None if that folder cannot be written: the cache is optional.
  """
  config: Any = jax.config  # its fields are not declared
  configured = config.jax_compilation_cache_dir
  if configured:
    return pathlib.Path(configured)
  home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path("~/.cache").expanduser()
  folder = pathlib.Path(home) / "jaxkd" / "programs"
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return None
  if not os.access(folder, os.W_OK):
    return None
  enable_compilation_cache_in(folder)
  return folder


def enable_compilation_cache_in(folder: pathlib.Path) -> None:
  """Make jax store compiled programs in a given folder, whatever it was configured with before."""
  jax.config.update("jax_compilation_cache_dir", str(folder))
  # With a size limit jax also locks the folder: no process reads what another one is writing.
  jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  # XLA's own cache files would be neither locked nor limited in size.
  jax.config.update("jax_persistent_cache_enable_xla_caches", "")
  _remove_half_written(folder)


def _remove_half_written(folder: pathlib.Path) -> None:
  """Remove programs whose writing was interrupted, for instance by SIGKILL.

  Jax would warn about them at every start and never replace them. It writes the "-atime" file of a
  program after the program; while one such file is missing, jax fails to add any other program.
  """
  if not folder.is_dir():
    return
  with filelock.FileLock(folder / ".lockfile"):  # the file that jax locks
    for program in folder.glob("*-cache"):
      if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
        program.unlink()


class Stopwatch:
  """The seconds that jax spends on tracing, lowering and compiling, or on loading from the cache.

  >>> with Stopwatch() as compiling:
  ...   three = jax.jit(lambda x: x + 2)(1)
  >>> compiling.seconds > 0
  True

  """

  def __init__(self) -> None:
    self._spans: list[tuple[float, float]] = []

  @property
  def seconds(self) -> float:
    """The seconds until now; nested and overlapping spans count once."""
    total, counted = 0.0, 0.0
    for start, end in sorted(self._spans):
      total += max(0.0, end - max(start, counted))
      counted = max(counted, end)
    return total

  def __enter__(self) -> Stopwatch:
    jax.monitoring.register_event_time_span_listener(self._record)
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    jax.monitoring.unregister_event_time_span_listener(self._record)

  def _record(self, event: str, start_time: float, end_time: float, **_: Any) -> None:
    if event.startswith("/jax/core/compile/"):
      self._spans.append((start_time, end_time))
