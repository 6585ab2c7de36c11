"""Worker processes, each with its own cores or accelerator device, that take task after task."""

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


class Slot(NamedTuple):
  """The hardware of one worker.

  Attributes:
    cores: CPU cores that it may use; none allows all.
    environment: its environment variables besides those of this process.
  """

  cores: tuple[int, ...]
  environment: dict[str, str]


class Ended(NamedTuple):
  """Takes the place of a task's result if the worker's process ended, with this status."""

  status: int | None


class Workers:
  """Worker processes, alive inside a `with` block.

  Args:
    slots: one per worker.
    begin: an importable function, called once in each process before jax is used there; it returns
      the function that is called with every task.
    arguments: arguments of `begin`.
  """

  def __init__(
    self, slots: Sequence[Slot], begin: Callable[..., Callable[[Any], Any]], *arguments: Any
  ) -> None:
    self._slots, self._arguments = slots, (begin, arguments)
    self._processes: dict[Any, multiprocessing.process.BaseProcess] = {}
    self._tasks: dict[Any, Any] = {}

  def __enter__(self) -> Workers:
    # A forked process cannot use jax.
    context = multiprocessing.get_context("spawn")
    for slot in self._slots:
      parent_end, worker_end = context.Pipe()
      arguments = (worker_end, slot, os.getcwd(), *self._arguments)
      self._processes[parent_end] = context.Process(target=_work, args=arguments, daemon=True)
      self._processes[parent_end].start()
      worker_end.close()  # so that the worker's end closes the pipe
    return self

  def __exit__(self, *_: object) -> None:
    for process in self._processes.values():
      process.terminate()
    for process in self._processes.values():
      process.join()

  @property
  def idle(self) -> int:
    """Number of workers without a task."""
    return len(self._processes) - len(self._tasks)

  def give(self, task: Any) -> None:
    """Send a task to an idle worker."""
    worker = next(worker for worker in self._processes if worker not in self._tasks)
    self._tasks[worker] = task
    worker.send(task)

  def results(self) -> Iterator[tuple[Any, Any]]:
    """Wait until at least one task is finished; yield (task, result) of each finished one."""
    ready = multiprocessing.connection.wait(list(self._tasks))
    for worker in [worker for worker in self._tasks if worker in ready]:
      try:
        result = worker.recv()
      except EOFError:
        process = self._processes.pop(worker)
        process.join()
        result = Ended(process.exitcode)
      yield self._tasks.pop(worker), result


def slots(workers: int, tasks: int) -> list[Slot]:
  """Return a slot for each worker, at most one per task; none if there is only one worker.

  Args:
    workers: number of workers; 0 is one per core, or one per accelerator device if there are any.
    tasks: number of tasks.
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
    return [Slot(tuple(each), {}) for each in several]
  sharing = -(-workers // count)
  return [Slot((), one_device(platform, i % count, sharing)) for i in range(workers)]


def one_device(platform: str, number: int, sharing: int = 1) -> dict[str, str]:
  """Return the environment variables that restrict a process to one accelerator.

  Args:
    platform: jax's name of it.
    number: index of the device among those that this process may use.
    sharing: number of processes that share its memory.

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
  """Return jax's platform and its number of devices, found by a process that ends again.

  If this process initialised jax, it would occupy the accelerators that the workers need.
  """
  if os.environ.get("JAX_PLATFORMS") == "cpu":
    return "cpu", 0
  # A TPU chip may be two devices, but only one process can use it.
  script = (
    "import jax; found = jax.local_devices(); tpu = found[0].platform == 'tpu'; "
    "print(found[0].platform, len({tuple(d.coords) if tpu else d.id for d in found}))"
  )
  found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
  if found.returncode:
    raise RuntimeError(f"jax finds no device: {found.stderr.strip().splitlines()[-1]}")
  platform, count = found.stdout.split()[-2:]
  return platform, int(count)


def _work(
  tasks: multiprocessing.connection.Connection,
  slot: Slot,
  directory: str,
  begin: Callable[..., Callable[[Any], Any]],
  arguments: Sequence[Any],
) -> None:
  """Run a worker: handle tasks until the process is terminated."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles it
  threading.Thread(target=_end_with_parent, daemon=True).start()
  os.chdir(directory)
  os.environ.update(slot.environment)
  if slot.cores:
    os.sched_setaffinity(0, slot.cores)
  handle = begin(*arguments)
  while True:
    tasks.send(handle(tasks.recv()))


def _end_with_parent() -> None:
  """Exit when the parent process does: its next start must not meet workers of the last one."""
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  os._exit(1)
