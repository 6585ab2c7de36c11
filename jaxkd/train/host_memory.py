"""How the C library treats the memory that XLA's CPU backend takes and frees at every step."""

from __future__ import annotations

import ctypes
import os

# Numbers of malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
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
