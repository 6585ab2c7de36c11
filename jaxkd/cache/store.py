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
  """Arrays of examples in a directory, read by number.

  Attributes:
    complete: whether they are all there, and are what is asked for.
  """

  def __init__(
    self, directory: pathlib.Path, shapes: Sequence[jax.ShapeDtypeStruct], about: str
  ) -> None:
    """Looks whether they are there.

    Args:
      directory: that is theirs alone.
      shapes: of the arrays of a batch.
      about: what they were computed from (`fingerprint`).
    """
    self._directory = directory
    self._shapes = [(shape.shape[1:], np.dtype(shape.dtype)) for shape in shapes]
    self._about = about
    self._reader: Any = None

  @property
  def complete(self) -> bool:
    """See the class."""
    file = self._directory / _ABOUT
    return file.exists() and file.read_text() == self._seal()

  def write(self, parts: Iterable[Sequence[np.ndarray]]) -> None:
    """Writes the arrays of one batch after the other, in place of what is there.

    Raises:
      DiskError: if they cannot be written.
    """
    with needed_by("writing cached targets"):
      from array_record.python.array_record_module import ArrayRecordWriter

    with writing(self._directory):
      self._directory.mkdir(parents=True, exist_ok=True)
      (self._directory / _ABOUT).unlink(missing_ok=True)
    self._reader = None  # of the file that is written over
    # Groups of one: records are read one by one, in no order.
    writer = ArrayRecordWriter(str(self._directory / _RECORDS), "group_size:1")
    for arrays in parts:
      flat = [np.ascontiguousarray(x).reshape(len(x), -1).view(np.uint8) for x in arrays]
      for record in np.concatenate(flat, axis=1):
        writer.write(record.tobytes())
    writer.close()
    # Written last: its presence says that the records are whole.
    with writing(self._directory):
      (self._directory / _ABOUT).write_text(self._seal())

  def read(self, numbers: np.ndarray) -> tuple[np.ndarray, ...]:
    """The arrays (B, ...) of these examples and views, numbered in the order of writing.

    Raises:
      ConfigError: if they are damaged; whoever asks next is told that they are not complete.
    """
    try:
      records = self._records([int(number) for number in numbers])
    except RuntimeError as error:  # of a digest that array_record keeps of every record
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

  def _seal(self) -> str:
    """What they were computed from, and how long the file is that holds them."""
    file = self._directory / _RECORDS
    return f"{self._about} {file.stat().st_size if file.exists() else 0}"


def fingerprint(*parts: Any) -> str:
  """A digest of arrays, numbers and texts, in any pytrees."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree.leaves_with_path(parts):
    value = np.asarray(leaf)
    digest.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape} ".encode())
    digest.update(value.tobytes())
  return digest.hexdigest()
