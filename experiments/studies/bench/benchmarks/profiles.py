"""Profiles of a compiled program and of a PyTorch loop, by kind of operation.

For one thread: work that XLA gives to other threads is missing from its profile.
"""

from __future__ import annotations

import collections
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax

# Prefix of a thunk's name -> kind; the first match counts.
_XLA_KINDS = {
  "conv_general_dilated": "convolutions",
  "convolution": "their gradients",
  "dot": "matrix products",
  "ynn_fusion": "YNNPACK's convolutions, products and sums",
  "ThunkExecutor::Execute (wait": "waiting",
}
_TORCH_KINDS = {
  "aten::convolution_backward": "their gradients",
  "aten::mkldnn_convolution": "convolutions",
  "aten::addmm": "matrix products",
  "aten::mm": "matrix products",
  "aten::bmm": "matrix products",
}
REST = "everything else"


class Span(NamedTuple):
  """An interval of a thread's work, in nanoseconds; spans of a thread nest."""

  name: str
  start: float
  end: float


def of_xla(run: Callable[[], Any], calls: int = 10) -> dict[str, float]:
  """Return kind -> milliseconds in one call, which must wait for its results."""
  run()
  with tempfile.TemporaryDirectory(prefix="jaxkd-profile-") as folder:
    with jax.profiler.trace(folder):
      for _ in range(calls):
        run()
    (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
    profile = jax.profiler.ProfileData.from_file(str(file))
    threads = [
      [Span(e.name, e.start_ns, e.start_ns + e.duration_ns) for e in line.events]
      for plane in profile.planes
      for line in plane.lines
      if "XLA" in line.name
    ]
  total: collections.Counter[str] = collections.Counter()
  for spans in threads:
    for name, own in own_times(spans).items():
      total[_kind(name, _XLA_KINDS)] += own / calls / 1e6
  return dict(total)


def of_torch(run: Callable[[], Any], calls: int = 10) -> dict[str, float]:
  """Return the same for a function that calls PyTorch."""
  import torch

  run()
  with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
    for _ in range(calls):
      run()
  total: collections.Counter[str] = collections.Counter()
  for event in profile.key_averages():
    total[_kind(event.key, _TORCH_KINDS)] += event.self_cpu_time_total / calls / 1e3
  return dict(total)


def own_times(spans: Iterable[Span]) -> dict[str, float]:
  """Return name -> time in spans of that name, without the spans inside them.

  >>> own_times([Span("outer", 0, 10), Span("inner", 2, 5), Span("inner", 6, 7)])
  {'outer': 6.0, 'inner': 4.0}
  """
  own: dict[str, float] = {}
  open_spans: list[Span] = []
  for span in sorted(spans, key=lambda s: (s.start, -s.end)):
    while open_spans and open_spans[-1].end <= span.start:
      open_spans.pop()
    length = float(span.end - span.start)
    own[span.name] = own.get(span.name, 0.0) + length
    if open_spans:
      own[open_spans[-1].name] -= length
    open_spans.append(span)
  return own


def _kind(name: str, kinds: Mapping[str, str]) -> str:
  return next((kind for start, kind in kinds.items() if name.startswith(start)), REST)
