"""The processes of a run: joining them, agreement, lost processes, the work directory's lock."""

from __future__ import annotations

import contextlib
import ctypes
import pathlib
import signal
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxkd.errors import ConfigError, needed_by

LOST_PROCESS = (
  "error: another process of this run has died or cannot be reached; the same command for all "
  "of them goes on from the last checkpoint"
)

# The lock file of a work directory. It stays there after a run; when a process dies, the system
# releases the lock and leaves the file.
LOCK = "run.lock"

# Seconds without a heartbeat after which a process counts as lost, and the others end.
_HEARTBEAT_TIMEOUT = 30

# Status codes of errors about another process that does not answer.
_CODES = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED")

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_kept_alive: list[Callable[..., None]] = []  # handlers that C holds, unknown to Python's counting


def join_processes(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  mpi: bool = False,
) -> None:
  """Make this process one of several. Call it before jax is first used.

  Arguments that are None are taken from the cluster: jax recognises TPU pods, Slurm, and Open MPI
  up to version 4 by their environment variables. On GPUs the latter two give each process the one
  device that has its rank on the host.

  Args:
    coordinator: HOST:PORT of the first process.
    num_processes: number of processes.
    process_id: number of this process, from 0.
    mpi: read rank and size from MPI, of any implementation, through the package mpi4py.

  Raises:
    ConfigError: if jax finds no cluster, or what it found is not enough.
  """
  handler = signal.getsignal(signal.SIGTERM)
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      cluster_detection_method="mpi4py" if mpi else None,
      heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
    )
  except ImportError as error:
    raise ConfigError("--mpi needs mpi4py, which is not installed: pip install mpi4py") from error
  except ValueError as error:
    raise ConfigError(
      f"no cluster was found here ({error}); give --coordinator=HOST:PORT, --num_processes and "
      "--process_id"
    ) from error
  # Jax installs its own SIGTERM handler, for a preemption service that is not used here.
  signal.signal(signal.SIGTERM, handler)


def is_first_process() -> bool:
  """Check whether this is process 0, which alone writes files and prints."""
  return jax.process_index() == 0


def is_single_process() -> bool:
  """Check whether the run has no other process."""
  return jax.process_count() == 1


def barrier(name: str) -> None:
  """Wait until every process has reached the barrier of this name."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def agree(flag: bool) -> bool:
  """Return the first process's flag in every process, for flags that follow from local clocks."""
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.broadcast_one_to_all(np.asarray(flag)))


def any_process(flag: bool) -> bool:
  """Check whether the flag is set in at least one process."""
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def on_abort(end: Callable[[], None]) -> None:
  """Install a C handler of SIGABRT that calls `end`, which must end the process.

  Jax aborts from C++, without calling Python, when the first process is gone or another one misses
  its heartbeats. (Its client accepts a callback for this, but with an argument that cannot be
  converted to Python.) A handler installed by `signal.signal` would never run.
  """
  handler = _HANDLER(lambda _: end())
  _kept_alive.append(handler)
  library = ctypes.CDLL(None)
  library.signal.argtypes, library.signal.restype = (ctypes.c_int, _HANDLER), ctypes.c_void_p
  library.signal(signal.SIGABRT, handler)


def is_lost_process_error(error: BaseException | None) -> bool:
  """Check whether an error, or one of its causes, comes from a collective that lost a process."""
  while error is not None:
    if isinstance(error, jax.errors.JaxRuntimeError):
      text = str(error)
      if "Gloo" in text or "NCCL" in text or text.startswith(_CODES):
        return True
    error = error.__cause__ or error.__context__
  return False


@contextlib.contextmanager
def workdir_lock(workdir: pathlib.Path) -> Iterator[None]:
  """Lock a work directory against other runs inside the `with` block; create it if absent.

  All processes of a run enter the block together; the first of them holds the lock.

  Raises:
    ConfigError: in every process, if another run holds the lock or the folder cannot be written.
  """
  # Needed by runs alone, and not by `jaxkd.train`.
  with needed_by("the lock of a work directory"):
    import filelock

  lock = filelock.FileLock(workdir / LOCK)
  problem = ""
  if is_first_process():
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      lock.acquire(timeout=0)
    except filelock.Timeout:
      problem = f"workdir {workdir} is in use by another run; wait for its end or choose another"
    except OSError as error:
      problem = (
        f"workdir {workdir} cannot be written ({error.strerror}); mend that or choose another"
      )
  if not agree(not problem):
    raise ConfigError(problem or f"workdir {workdir} was refused by the first process")
  try:
    yield
  finally:
    lock.release()
