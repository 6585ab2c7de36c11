"""Host memory: how glibc's malloc keeps freed blocks."""

from __future__ import annotations

import ctypes
import os

# Option numbers of malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def tune_malloc() -> bool:
  """Make malloc keep freed memory in this process. Call it before jax is first used.

  XLA allocates a step's buffers anew in every step. By default glibc returns large blocks to the
  system when they are freed, and the system clears every page of the next ones. Kept in one heap,
  pages are cleared once; the process then holds as much memory as its peak use.

  Nothing is changed if the environment sets MALLOC_... or GLIBC_TUNABLES.

  Returns:
    Whether settings were changed; always False without glibc.
  """
  if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
    return False
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
  if mallopt is None:
    return False
  # Threads would get arenas of their own, which do not hold buffers beyond 64 MB.
  settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1))
  return all(mallopt(option, value) == 1 for option, value in settings)
