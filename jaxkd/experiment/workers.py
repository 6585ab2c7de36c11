"""Worker processes that take task after task, each on cores or an accelerator device of its own."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple


class Place(NamedTuple):
  """Where a worker computes.

  Attributes:
    cores: that it may use; none leaves it all.
    environment: variables that it has besides this process's.
  """

  cores: tuple[int, ...]
  environment: dict[str, str]


class Ended(NamedTuple):
  """In place of a task's result: the worker's process ended, with this status."""

  status: int | None


class Workers:
  """Processes that are there inside a `with` block. What they do comes from an importable function.

  Args:
    places: one for each.
    begin: called once in each process, before which nothing of jax has been used there; it returns
      what is then called with every task.
    arguments: of `begin`.
  """

  def __init__(
    self, places: Sequence[Place], begin: Callable[..., Callable[[Any], Any]], *arguments: Any
  ) -> None:
    self._places, self._arguments = places, (begin, arguments)
    self._processes: dict[Any, multiprocessing.process.BaseProcess] = {}
    self._tasks: dict[Any, Any] = {}

  def __enter__(self) -> Workers:
    # A forked process could not use jax.
    context = multiprocessing.get_context("spawn")
    for place in self._places:
      ours, theirs = context.Pipe()
      arguments = (theirs, place, os.getcwd(), *self._arguments)
      self._processes[ours] = context.Process(target=_work, args=arguments, daemon=True)
      self._processes[ours].start()
      theirs.close()  # or its end would go unnoticed
    return self

  def __exit__(self, *_: object) -> None:
    for process in self._processes.values():
      process.terminate()
    for process in self._processes.values():
      process.join()

  @property
  def idle(self) -> int:
    """How many have nothing to do."""
    return len(self._processes) - len(self._tasks)

  def give(self, task: Any) -> None:
    """Hands a task to one that is idle."""
    worker = next(worker for worker in self._processes if worker not in self._tasks)
    self._tasks[worker] = task
    worker.send(task)

  def results(self) -> Iterator[tuple[Any, Any]]:
    """Waits until at least one task is done; (task, result) of those that are."""
    ready = multiprocessing.connection.wait(list(self._tasks))
    for worker in [worker for worker in self._tasks if worker in ready]:
      try:
        result = worker.recv()
      except EOFError:
        process = self._processes.pop(worker)
        process.join()
        result = Ended(process.exitcode)
      yield self._tasks.pop(worker), result


def places(workers: int, tasks: int) -> list[Place]:
  """A place for each worker, no more than there are tasks; none if there is but one worker.

  Args:
    workers: 0 for as many as there are cores, or accelerator devices if there are any.
    tasks: that they will share.
  """
  if workers == 1:
    return []
  platform, count = _hardware()
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
  if platform == "cpu":
    count = len(cores) or os.cpu_count() or 1
  workers = workers or count
  if workers == 1:
    return []
  workers = min(workers, tasks)
  if platform == "cpu":
    several = (cores[i::workers] or cores[i % count : i % count + 1] for i in range(workers))
    return [Place(tuple(each), {}) for each in several]
  sharing = -(-workers // count)
  return [Place((), one_device(platform, i % count, sharing)) for i in range(workers)]


def one_device(platform: str, number: int, sharing: int = 1) -> dict[str, str]:
  """The environment variables that leave a process one accelerator.

  Args:
    platform: as jax calls it.
    number: of the device, among those that this process may use.
    sharing: how many processes share its memory.

  >>> one_device("tpu", 2)["TPU_VISIBLE_CHIPS"]
  '2'
  """
  if platform == "tpu":
    visible, bounds = "TPU_VISIBLE_CHIPS", ("TPU_CHIPS_PER_PROCESS_BOUNDS", "TPU_PROCESS_BOUNDS")
    variables = dict.fromkeys(bounds, "1,1,1")
  else:
    visible, variables = "CUDA_VISIBLE_DEVICES", {}
    if sharing > 1:
      variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / sharing:.3f}"
  names = os.environ.get(visible)
  return {visible: names.split(",")[number] if names else str(number), **variables}


def _hardware() -> tuple[str, int]:
  """What jax runs on, and how many of them, as found out by a process that ends again.

  Were this one to ask, it would hold the accelerators that the workers are to use.
  """
  if os.environ.get("JAX_PLATFORMS") == "cpu":
    return "cpu", 0
  # A TPU's chip, which only one process can use, may be two devices.
  script = (
    "import jax; found = jax.local_devices(); tpu = found[0].platform == 'tpu'; "
    "print(found[0].platform, len({tuple(d.coords) if tpu else d.id for d in found}))"
  )
  asked = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
  if asked.returncode:
    raise RuntimeError(f"jax finds no device: {asked.stderr.strip().splitlines()[-1]}")
  platform, count = asked.stdout.split()[-2:]
  return platform, int(count)


def _work(
  tasks: multiprocessing.connection.Connection,
  place: Place,
  directory: str,
  begin: Callable[..., Callable[[Any], Any]],
  arguments: Sequence[Any],
) -> None:
  """The life of a worker."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # that of the command ends it
  threading.Thread(target=_end_with_parent, daemon=True).start()
  os.chdir(directory)
  os.environ.update(place.environment)
  if place.cores:
    os.sched_setaffinity(0, place.cores)
  handle = begin(*arguments)
  while True:
    tasks.send(handle(tasks.recv()))


def _end_with_parent() -> None:
  """A command that was killed may be given again, and two must not write the same folder."""
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  os._exit(1)
