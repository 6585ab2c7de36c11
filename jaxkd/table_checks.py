"""Checks of arrays with one row per example, a part at a time: they may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxkd.errors import ConfigError

# Bytes of an array that are read at a time.
_CHUNK = 2**26


def served(dtype: Any) -> np.dtype:
  """Return the type of a stored array on a device."""
  if jnp.issubdtype(dtype, jnp.integer):
    return np.dtype(np.int32)
  return np.dtype(dtype).newbyteorder("=") if np.dtype(dtype).itemsize <= 4 else np.dtype("f4")


def float_array(name: str, value: Any) -> np.ndarray:
  """Return a value as an array, without a copy; a ConfigError if it does not hold floats."""
  array = value if isinstance(value, np.ndarray) else np.asarray(value)
  if not jnp.issubdtype(array.dtype, jnp.floating):
    raise ConfigError(f"{name}: expected floats, got {array.dtype} {array.shape}")
  return array


def chunks(array: np.ndarray) -> Iterator[tuple[Any, np.ndarray]]:
  """Yield (index, rows) of an array, along its first axis, of at most `_CHUNK` bytes."""
  each = max(1, array[:1].nbytes)
  step = max(1, _CHUNK // each)
  for start in range(0, len(array), step):
    at = slice(start, start + step)
    yield at, np.asarray(array[at])


def row_name(axes: int, at: tuple[int, ...]) -> str:
  """Return a row's name in words."""
  view = f"view {at[0]}, " if axes == 2 else ""
  return f"{view}row {at[axes - 1]}"


def check_rows(axes: int, arrays: Mapping[str, np.ndarray]) -> None:
  """Raise a ConfigError for NaN, +inf and rows without a possible class."""
  for name, array in arrays.items():
    for start, rows in chunks(array):
      with np.errstate(over="ignore"):
        rows = rows.astype(served(rows.dtype))
      highest = rows.max(-1)  # NaN if there is one
      bad = ~np.isfinite(highest)
      if not bad.any():
        continue
      at = tuple(np.argwhere(bad)[0])
      what = {True: "NaN", False: f"{highest[at]}"}[bool(np.isnan(highest[at]))]
      if highest[at] == -np.inf:
        what = "-inf for every class"
      where = row_name(axes, (at[0] + start.start, *at[1:]))
      raise ConfigError(
        f"{name}: {where} has {what}: expected finite float32 numbers, or -inf for some classes"
      )


def check_classes(axes: int, classes: np.ndarray, count: int) -> None:
  """Raise a ConfigError for class numbers out of range, or twice in a row."""
  for start, rows in chunks(classes):
    order = np.sort(rows, -1)
    problems = (
      ((order[..., 0] < 0) | (order[..., -1] >= count), f"a class that is not in 0..{count - 1}"),
      ((order[..., 1:] == order[..., :-1]).any(-1), "a class twice"),
    )
    for bad, what in problems:
      if bad.any():
        at = tuple(np.argwhere(bad)[0])
        where = row_name(axes, (at[0] + start.start, *at[1:]))
        raise ConfigError(f"indices: {where} has {what}: {rows[at].tolist()[:10]}")
