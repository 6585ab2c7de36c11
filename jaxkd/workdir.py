"""A work directory is written by one run at a time."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

from jaxkd.errors import needed_by

with needed_by("jaxkd.workdir"):
  import filelock


from jaxkd.errors import ConfigError
from jaxkd.train import devices

# Left behind by every run: the system takes the lock back from a process that dies, not the file.
LOCK = "run.lock"


@contextlib.contextmanager
def claimed(workdir: pathlib.Path) -> Iterator[None]:
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
