"""Rows of the table-driven tests, one file per method: `merged` and `joined` collect them.

A file may define
  SUBJECTS: name -> `_subject.Subject`, for tests/losses/test_every_loss.py;
  COUNTED: list of `_counted.Case`, and BY_EXAMPLE: functions without a mask, for
    tests/losses/test_counting.py;
  CALLS, MORE, ONE_SIDED: as in tests/losses/test_wrong_inputs.py;
  BEHIND_A_NETWORK: name -> `_networked.Case`, for tests/numerics;
  MUTATIONS: list of `_mutation.Mutation`, for tests/mutate.py;
  GOLDEN: file in tests/golden -> its adapter, for tests/test_golden.py;
  RECORDED, REFUSED: variants, and (variant, pair) -> message, for tests/recorded_values.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from types import ModuleType
from typing import Any


@functools.cache
def _files() -> tuple[ModuleType, ...]:
  names = sorted(module.name for module in pkgutil.iter_modules(__path__))
  return tuple(importlib.import_module(f"{__name__}.{x}") for x in names if not x.startswith("_"))


def merged(table: str) -> dict[str, Any]:
  """Return the entries of a table of all files."""
  found: dict[str, Any] = {}
  for file in _files():
    rows = getattr(file, table, {})
    twice = found.keys() & rows.keys()
    assert not twice, f"{file.__name__}.{table} repeats {twice}"
    found.update(rows)
  return found


def joined(table: str) -> list[Any]:
  """Return the rows of a table of all files."""
  return [row for file in _files() for row in getattr(file, table, ())]
