"""A teacher of a config that is a file of logits."""

from __future__ import annotations

import functools
import os
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.data import UNLABELLED, Dataset, Examples
from jaxkd.errors import ConfigError, one_line
from jaxkd.experiment.consistency import augmented_by
from jaxkd.methods import Teacher
from jaxkd.tables import Table, TopK
from jaxkd.train.expected import Expected, reason_to_warn, sample
from jaxkd.types import Output

_NAMES = "logits, or indices and values (and num_classes)"
# What numpy and its archives raise for files that are no arrays, or damaged.
_UNREADABLE = (
  OSError,
  ValueError,
  EOFError,
  KeyError,
  OverflowError,
  NotImplementedError,
  zipfile.BadZipFile,
  zlib.error,
)


def stored_teacher(settings: Any, data: Dataset) -> tuple[Teacher, Mapping[str, Any]]:
  """Return the teacher `teacher.logits` and its variables.

  Args:
    settings: a config that `check_config` accepts.
    data: data set of the run.

  Raises:
    ConfigError: one line naming the file and what does not fit: its arrays, the number of examples
      or classes, the views.
  """
  path, missing = settings.teacher.logits, settings.teacher.missing
  where = f"teacher.logits={path!r}"
  try:
    status = os.stat(path)
    version = status.st_mtime_ns, status.st_size
    # Only a file of top-k logits without its number of classes needs the data set's.
    table = _read(os.path.abspath(path), missing, data.num_classes, version)
  except ConfigError as error:
    raise ConfigError(f"{where}: {error}") from error
  except _UNREADABLE as error:
    reason = getattr(error, "strerror", None) or one_line(error)
    raise ConfigError(f"{where}: {reason}; expected a .npy or .npz file without objects") from error
  if data.train.labels.ndim > 1:
    raise ConfigError(
      f"{where}: expected '', as examples of {data.name!r} have labels "
      f"{data.train.labels.shape[1:]} each, and a file has one row of logits per example"
    )
  _check_size(where, table, data)
  _check_views(where, table, settings)
  shape: Any = jax.ShapeDtypeStruct((2, table.num_classes), jnp.float32)
  teacher = Teacher(
    table, Output(logits=shape), os.path.basename(path), where, notes=_notes(table, data, missing)
  )
  return teacher, table.variables


# A sweep, or a plan with several phases, needs one file repeatedly.
@functools.lru_cache(maxsize=2)
def _read(path: str, missing: str, num_classes: int, version: tuple[int, int]) -> Table:
  """Return the table in a file; `version` tells a changed file from the one read before."""
  with open(path, "rb") as file:
    if file.read(4) == b"PK\x03\x04":  # np.load does not close a damaged archive
      file.seek(0)
      with np.load(file, allow_pickle=False) as content:
        arrays = {name: np.asarray(content[name]) for name in content.files}
    else:
      arrays = {"logits": np.load(path, mmap_mode="r", allow_pickle=False)}
  if arrays.keys() == {"logits"}:
    if missing != "impossible":
      raise ConfigError(
        f"teacher.missing={missing!r}: expected 'impossible', as no class is missing"
      )
    return _table(arrays["logits"], arrays["logits"])
  if not {"indices", "values"} <= arrays.keys() <= {"indices", "values", "num_classes"}:
    raise ConfigError(f"it has arrays {', '.join(arrays) or 'none'}: expected {_NAMES}")
  count = arrays.get("num_classes", np.asarray(num_classes))
  if count.shape != () or count.dtype.kind not in "iu":
    raise ConfigError(f"num_classes: expected one integer, got {count.dtype} {count.shape}")
  values: Any = arrays["values"]
  kind: Any = missing
  return _table(values, TopK(arrays["indices"], values, int(count), kind))


def _table(array: np.ndarray, logits: Any) -> Table:
  """Return a table of (N, C) arrays, or (V, N, C) arrays of views."""
  if array.ndim not in (2, 3):
    raise ConfigError(
      f"an array of shape {array.shape}: expected (examples, classes), or (views, examples, "
      "classes)"
    )
  return Table(logits, views=array.shape[0] if array.ndim == 3 else 0, fed=True)


def _check_size(where: str, table: Table, data: Dataset) -> None:
  """Raise a ConfigError unless the table has the examples and the classes of the data set."""
  if table.num_classes != data.num_classes:
    raise ConfigError(
      f"{where} has {table.num_classes} classes: expected {data.num_classes}, those of "
      f"{data.name!r}"
    )
  count, exact = _examples_in(data)
  if len(table) != count if exact else len(table) < count:
    whole = "" if exact else "at least "
    raise ConfigError(
      f"{where} has {len(table)} examples: expected {whole}{count}, the whole training split of "
      f"{data.name!r} in its order, of which {len(data.train)} are trained on"
    )


def training_parts(data: Dataset) -> list[Examples]:
  """Return the parts of the split that `Batch.indices` count in: to train on, and held out of it.

  A part that was split off has other indices than the training examples; a split of its own counts
  from 0 again.
  """
  parts, seen = [data.train], np.asarray(data.train.indices)
  for part in (data.validation, data.test):
    if part is not None and not np.isin(part.indices, seen).any():
      parts.append(part)
      seen = np.concatenate([seen, part.indices])
  return parts


def _examples_in(data: Dataset) -> tuple[int, bool]:
  """Return the number of examples that `indices` count in, and whether it is certain."""
  seen = np.concatenate([part.indices for part in training_parts(data)])
  count = int(seen.max()) + 1
  return count, len(np.unique(seen)) == count


def _check_views(where: str, table: Table, settings: Any) -> None:
  """Raise a ConfigError unless the table has a row for every view that the student sees."""
  views, random = settings.data.views, augmented_by(settings)
  if table.views and table.views != views:
    raise ConfigError(f"data.views={views}: expected {table.views}, the views in {where}")
  if random and not table.views:
    value = settings.data[random]
    raise ConfigError(
      f"data.{random}={value}: expected {type(value)()}, as {where} has one row per example; or an "
      f"array ({views}, {len(table)}, {table.num_classes}) of data.views={views} augmented views"
    )


def _notes(table: Table, data: Dataset, missing: str) -> tuple[str, ...]:
  """Return lines about missing classes, and about logits that do not agree with the labels."""
  notes = []
  if "values" in table.arrays:
    kept = table.arrays["values"].shape[-1]
    share = "no probability" if missing == "impossible" else "equal shares of the rest"
    notes.append(
      f"{kept} of {table.num_classes} classes per example; the others have {share} "
      f"(teacher.missing={missing!r})"
    )
  chosen, of = sample(data.train, None)
  rows = table.rows(chosen.indices, np.zeros(len(chosen.indices), np.int32))
  if "logits" in rows:
    best = rows["logits"].argmax(-1)
  else:
    at = rows["values"].argmax(-1)[:, None]
    best = np.take_along_axis(rows["classes"], at, axis=-1)[:, 0]
  labels = np.asarray(chosen.labels)
  assert not np.any(labels == UNLABELLED)
  agreement = float(np.mean(best == labels))
  if why := reason_to_warn(Expected("teacher", table.num_classes), agreement, labels):
    notes.append(
      f"warning: its highest logit is the label of {agreement:.1%} of {of}, {why}: check that row "
      "i is example i of the training split, and the order of the classes"
    )
  return tuple(notes)
