"""Cached targets on disk, one record for each example and view."""

from __future__ import annotations

import hashlib
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jaxkd.errors import ConfigError, needed_by, writing

_ABOUT, _RECORDS = "fingerprint", "targets.array_record"


class StoredTargets:
  """Arrays of examples in a directory, read by number."""

  def __init__(
    self, directory: pathlib.Path, shapes: Sequence[jax.ShapeDtypeStruct], about: str
  ) -> None:
    """Describe the arrays; nothing is read or written.

    Args:
      directory: a directory without other files.
      shapes: shapes and types of the arrays of a batch (B, ...).
      about: digest of everything that they are computed from (`fingerprint`).
    """
    self._directory = directory
    self._shapes = [(shape.shape[1:], np.dtype(shape.dtype)) for shape in shapes]
    self._about = about
    self._reader: Any = None

  @property
  def complete(self) -> bool:
    """True if all arrays are stored, and were computed from what `about` describes."""
    file = self._directory / _ABOUT
    return file.exists() and file.read_text() == self._description()

  def write(self, parts: Iterable[Sequence[np.ndarray]]) -> None:
    """Write arrays batch by batch; earlier contents are replaced.

    Raises:
      DiskError: if the directory cannot be written.
    """
    with needed_by("writing cached targets"):
      from array_record.python.array_record_module import ArrayRecordWriter

    with writing(self._directory):
      self._directory.mkdir(parents=True, exist_ok=True)
      (self._directory / _ABOUT).unlink(missing_ok=True)
    self._reader = None  # it reads the file that is replaced
    # Groups of one, for reading single records in random order.
    writer = ArrayRecordWriter(str(self._directory / _RECORDS), "group_size:1")
    for arrays in parts:
      flat = [np.ascontiguousarray(x).reshape(len(x), -1).view(np.uint8) for x in arrays]
      for record in np.concatenate(flat, axis=1):
        writer.write(record.tobytes())
    writer.close()
    # Written last: its presence means that all records are written.
    with writing(self._directory):
      (self._directory / _ABOUT).write_text(self._description())

  def read(self, numbers: np.ndarray) -> tuple[np.ndarray, ...]:
    """Read the arrays (B, ...) of examples and views, numbered in the order of writing.

    Raises:
      ConfigError: if they are damaged; `complete` is False afterwards.
    """
    try:
      records = self._records([int(number) for number in numbers])
    except RuntimeError as error:  # array_record checks a digest of every record
      (self._directory / _ABOUT).unlink(missing_ok=True)
      raise ConfigError(
        f"the targets cached in {self._directory} are damaged; the same command computes them anew"
      ) from error
    rows = np.frombuffer(b"".join(records), np.uint8).reshape(len(records), -1)
    found, start = [], 0
    for shape, dtype in self._shapes:
      stop = start + math.prod(shape) * dtype.itemsize
      part = np.ascontiguousarray(rows[:, start:stop]).view(dtype)
      found.append(part.reshape(len(records), *shape))
      start = stop
    return tuple(found)

  def _records(self, numbers: list[int]) -> list[bytes]:
    if self._reader is None:
      with needed_by("reading cached targets"):
        from array_record.python.array_record_module import ArrayRecordReader

      self._reader = ArrayRecordReader(str(self._directory / _RECORDS), "readahead_buffer_size:0")
    return self._reader.read(numbers)

  def _description(self) -> str:
    """Return `about` and the size of the file of records."""
    file = self._directory / _RECORDS
    return f"{self._about} {file.stat().st_size if file.exists() else 0}"


def fingerprint(*parts: Any) -> str:
  """Compute a digest of pytrees of arrays, numbers and strings."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree.leaves_with_path(parts):
    value = np.asarray(leaf)
    digest.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape} ".encode())
    digest.update(value.tobytes())
  return digest.hexdigest()
