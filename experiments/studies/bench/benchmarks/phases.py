"""The phases of a run's main thread, sampled from its stack every few milliseconds."""

from __future__ import annotations

import collections
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Self

# (End of a file's path, function or "" for all, phase). The innermost frame of a stack that is
# listed here decides the phase, so that compilation inside a step counts as compiling.
_PHASES = (
  ("jax/_src/compiler.py", "compile_or_get_cached", "compiling or loading programs"),
  ("jax/_src/interpreters/pxla.py", "lower_sharding_computation", "lowering"),
  ("jax/_src/pjit.py", "_trace_for_jit", "tracing"),
  ("jax/_src/api.py", "eval_shape", "tracing"),
  ("jaxkd/train/evaluate.py", "evaluate", "scoring"),
  ("jaxkd/cache/targets.py", "_computed", "cached targets"),
  ("jaxkd/train/input.py", "next", "starting steps"),
  ("jaxkd/runtime/mapping.py", "_read", "waiting for steps"),
  ("jaxkd/train/checkpoints.py", "", "checkpoints"),
  ("jaxkd/export/bundles.py", "save_bundle", "bundles"),
  ("jaxkd/report/plots.py", "", "curves"),
  ("jaxkd/report/files.py", "", "metrics and TensorBoard"),
  ("jaxkd/experiment/build.py", "phases", "planning"),
)
REST = "everything else"


class Phases:
  """Samples the phase of the thread that entered it while its `with` block runs.

  Attributes:
    seconds: phase -> seconds, the longest first; complete at the end of the block.
  """

  def __init__(self, every: float = 0.005) -> None:
    """Args: every: seconds between two samples."""
    self.seconds: dict[str, float] = {}
    self._every = every
    self._seen: collections.Counter[str] = collections.Counter()
    self._ended = threading.Event()

  def __enter__(self) -> Self:
    self._watched = threading.get_ident()
    self._began = time.perf_counter()
    self._looking = threading.Thread(target=self._look, daemon=True)
    self._looking.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    took = time.perf_counter() - self._began
    self._ended.set()
    self._looking.join()
    looks = max(1, self._seen.total())
    self.seconds = {p: round(took * n / looks, 2) for p, n in self._seen.most_common()}

  def _look(self) -> None:
    while not self._ended.wait(self._every):
      self._seen[phase_of(sys._current_frames()[self._watched])] += 1


def phase_of(innermost: FrameType) -> str:
  """Return the phase of a stack."""
  for frame in _outwards(innermost):
    for file, function, phase in _PHASES:
      if frame.f_code.co_filename.endswith(file) and function in ("", frame.f_code.co_name):
        return phase
  return REST


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
  while frame is not None:
    yield frame
    frame = frame.f_back
