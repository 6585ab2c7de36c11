"""The process of a run: lost peers, the lock of its work directory, memory, compiled programs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import signal
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import jax

from jaxkd.errors import needed_by

with needed_by("jaxkd.runtime.process"):
  import filelock


from jaxkd.errors import ConfigError
from jaxkd.runtime import devices

MESSAGE = (
  "error: another process of this run has died or cannot be reached; the same command for all "
  "of them goes on from the last checkpoint"
)

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_kept: list[Callable[..., None]] = []  # C has no part in counting references


def on_abort(end: Callable[[], None]) -> None:
  """Has `end` called where C++ would abort this process; it must end the process itself.

  That is what jax does, without asking Python, as soon as the first process is gone or any other
  is silent for too long. (Its client has an option for a callback in place of that, with an
  argument that cannot be converted for Python.) A handler of Python's own would never get to run.
  """
  handler = _HANDLER(lambda _: end())
  _kept.append(handler)
  library = ctypes.CDLL(None)
  library.signal.argtypes, library.signal.restype = (ctypes.c_int, _HANDLER), ctypes.c_void_p
  library.signal(signal.SIGABRT, handler)


def is_of_lost_process(error: BaseException | None) -> bool:
  """Whether an error, or what caused it, is of a collective that another process left."""
  while error is not None:
    if isinstance(error, jax.errors.JaxRuntimeError):
      text = str(error)
      if "Gloo" in text or "NCCL" in text or text.startswith(_CODES):
        return True
    error = error.__cause__ or error.__context__
  return False


# Of a peer or of the first process that does not answer.
_CODES = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED")


# Left behind by every run: the system takes the lock back from a process that dies, not the file.
LOCK = "run.lock"


@contextlib.contextmanager
def workdir_lock(workdir: pathlib.Path) -> Iterator[None]:
  """Makes `workdir` if it is absent; no other run can claim it inside the `with` block.

  To be entered by all processes of a run together; the first of them holds the lock.

  Raises:
    ConfigError: in every process, if another run holds it or it cannot be written.
  """
  lock = filelock.FileLock(workdir / LOCK)
  problem = ""
  if devices.is_first_process():
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      lock.acquire(timeout=0)
    except filelock.Timeout:
      problem = f"workdir {workdir} is in use by another run; wait for its end or choose another"
    except OSError as error:
      problem = (
        f"workdir {workdir} cannot be written ({error.strerror}); mend that or choose another"
      )
  if not devices.agree(not problem):
    raise ConfigError(problem or f"workdir {workdir} was refused by the first process")
  try:
    yield
  finally:
    lock.release()


# Numbers of malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def tune_malloc() -> bool:
  """Has this process keep what it frees. To be called before jax is first used.

  XLA asks for a step's buffers anew every time. glibc hands large ones straight back to the system
  when they are freed, and the system clears every page of the next ones. Kept in one heap, they are
  cleared once; what the process holds is then the most that it ever held.

  Whoever set MALLOC_... or GLIBC_TUNABLES in the environment is left alone.

  Returns:
    Whether anything was changed: only glibc knows how.
  """
  if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
    return False
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
  if mallopt is None:
    return False
  # Buffers beyond 64 MB do not fit the other arenas, which threads would get.
  settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1))
  return all(mallopt(option, value) == 1 for option, value in settings)


# The least recently used programs go when there are more.
_MOST_BYTES = 4 * 2**30


def enable_compilation_cache() -> pathlib.Path | None:
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
  enable_compilation_cache_in(folder)
  return folder


def enable_compilation_cache_in(folder: pathlib.Path) -> None:
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
