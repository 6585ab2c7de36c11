"""Times of several implementations of the same work, taken in turns, and their ratio."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

# The fewest rounds of a median, however long a round takes.
LEAST_ROUNDS = 5


def alternate(
  contestants: Mapping[str, Callable[[], Any]],
  *,
  rounds: int = 100,
  seconds: float = 20.0,
  block: int = 1,
  warmup: int = 2,
  primers: int = 0,
) -> dict[str, list[float]]:
  """Return seconds per call of each contestant, one number per round.

  Every round calls all of them, so that other load on the machine affects all. The order rotates,
  since each finds the caches as the one before left them.

  Args:
    contestants: name -> function to time; it returns when its work is done.
    rounds: largest number of rounds.
    seconds: time after which no further round starts, after at least LEAST_ROUNDS (or `rounds`, if
      that is fewer).
    block: calls in a row, whose mean counts: two thread pools that wait actively disturb each other
      less.
    warmup: rounds before those that count.
    primers: calls before each block that do not count, as others have filled the caches.
  """
  names = list(contestants)
  found: dict[str, list[float]] = {name: [] for name in names}
  started = time.perf_counter()
  for number in range(-warmup, rounds):
    if number == 0:
      started = time.perf_counter()
    if number >= LEAST_ROUNDS and time.perf_counter() - started > seconds:
      break
    first = number % len(names)
    for name in names[first:] + names[:first]:
      for _ in range(primers):
        contestants[name]()
      start = time.perf_counter()
      for _ in range(block):
        contestants[name]()
      if number >= 0:
        found[name].append((time.perf_counter() - start) / block)
  return found


def compared(seconds: Mapping[str, list[float]], ours: str, other: str) -> dict[str, Any]:
  """Return one contestant's time over another's.

  Args:
    seconds: result of `alternate`.
    ours: name of the numerator.
    other: name of the denominator.

  Returns:
    "ratio", the median over the rounds of the ratio within a round; "middle_half" of those ratios;
    "rounds".
  """
  ratios = [a / b for a, b in zip(seconds[ours], seconds[other], strict=True)]
  quarters = statistics.quantiles(ratios, n=4, method="inclusive") if ratios[1:] else 3 * ratios
  return {
    "ratio": round(statistics.median(ratios), 3),
    "middle_half": [round(quarters[0], 3), round(quarters[2], 3)],
    "rounds": len(ratios),
  }


def milliseconds(seconds: list[float]) -> float:
  """Return the median in milliseconds."""
  return round(1000 * statistics.median(seconds), 3)
