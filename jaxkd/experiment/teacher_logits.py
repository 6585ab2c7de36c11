"""Logits of a trained teacher for every training example, in a file for `teacher.logits`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxkd.data import Dataset, Examples, evaluation_batches, load
from jaxkd.data.keys import view_keys
from jaxkd.errors import ConfigError, writing
from jaxkd.experiment import build, config
from jaxkd.experiment.consistency import check_repeated
from jaxkd.experiment.stored_teacher import training_parts
from jaxkd.train import Phase
from jaxkd.train.state import step_rng
from jaxkd.types import Array, Batch


def write_logits(
  settings: Any,
  path: str | pathlib.Path,
  *,
  load_data: Callable[..., Dataset] = load,
) -> tuple[int, ...]:
  """Write the logits of a config's teacher, `teacher.bundle` or `teacher.weights`, to a .npy file.

  They are those that the student of the config would be given: of images as they are, (N, C), or of
  the `data.views` augmented views, (V, N, C), which depend on the config's seed. A run of the same
  config with `teacher.logits` in place of the network computes the same losses up to rounding.

  Args:
    settings: a config of a method with a teacher, such as "kd".
    path: the file; an existing one is replaced.
    load_data: function that loads the data set, such as one with a cache.

  Returns:
    The shape. N is the size of the whole training split, held-out examples included; the row of a
    position without an example is 0.

  Raises:
    ConfigError: for a config without a teacher that comes trained, with several, or with images
      that are never repeated.
    DiskError: if the file cannot be written.
  """
  config.check_config(settings)
  data = build.dataset(settings, load_data)
  check_repeated(settings, "logits in a file")
  plan = build.phases(settings, data, traced=False)
  teachers = [phase for phase in plan if phase.role == "teacher"]
  students = [phase for phase in plan if phase.role == "student"]
  if len(teachers) != 1 or not students or teachers[0].epochs or settings.teacher.logits:
    raise ConfigError(
      f"method.name={settings.method.name!r}, teacher.bundle={settings.teacher.bundle!r}, "
      f"teacher.weights={settings.teacher.weights!r}: expected one teacher that comes trained"
    )
  parts = training_parts(data)
  rows = _logits(teachers[0], students[-1], settings.data.views)
  count = 1 + max(int(np.max(part.indices)) for part in parts)
  classes = next(rows(parts[0], 0))[1].shape[-1]
  shape = (max(settings.data.views, 1), count, classes)
  target = pathlib.Path(path)
  partial = target.with_name(f"{target.name}.partial")
  kept = shape if settings.data.views else shape[1:]
  with writing(target):
    target.parent.mkdir(parents=True, exist_ok=True)
    stored = np.lib.format.open_memmap(partial, "w+", np.float32, kept)
    found = stored.reshape(shape)
    for part in parts:
      for view in range(shape[0]):
        for indices, logits in rows(part, view):
          found[view, indices] = logits
    stored.flush()
    partial.replace(target)
  return kept


def _logits(
  teacher: Phase, student: Phase, views: int
) -> Callable[[Examples, int], Iterator[tuple[np.ndarray, np.ndarray]]]:
  """Return (examples, view) -> iterator over (indices, logits) of batches."""
  rng, variables = step_rng(student.seed), dict(teacher.given)

  @jax.jit
  def predict(variables: Any, batch: Batch) -> Array:
    keys = view_keys(rng, batch, max(views, 1))
    seen = student.prepare_training(keys, batch)
    return teacher.scheme.predict(variables, seen.inputs)[teacher.name]

  def rows(examples: Examples, view: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for batch in evaluation_batches(examples, batch_size=min(256, len(examples))):
      epochs = np.full(len(batch.indices), view, np.int32)
      yield (
        batch.indices,
        np.asarray(predict(variables, dataclasses.replace(batch, epochs=epochs))),
      )

  return rows
