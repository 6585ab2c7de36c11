"""What a process does when another one of the same run is gone: it says so, and ends."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable

import jax

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
