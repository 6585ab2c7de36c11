"""Distillation in one call: a student, a teacher and data -> the trained student.

The run is that of a config: the same phases, step and checkpoints as those of the scripts.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from jaxkd.errors import needed_by

with needed_by("jaxkd.distill"):
  from rich.console import Console

from jaxkd.data import Dataset
from jaxkd.data.arrays import as_images
from jaxkd.errors import ConfigError
from jaxkd.experiment import build
from jaxkd.experiment import run as experiment
from jaxkd.experiment.best_epoch import best_row
from jaxkd.experiment.distill_arguments import settings_of
from jaxkd.experiment.given import name_of
from jaxkd.experiment.results import description_of
from jaxkd.experiment.stated_images import images_of_run
from jaxkd.export import bundles
from jaxkd.train import Finished, Phase, Reporter
from jaxkd.types import Batch, Network, Preprocessing


@dataclasses.dataclass(frozen=True)
class Result:
  """A trained student.

  Attributes:
    student: its module, `__call__(inputs, train)` or as it was given.
    variables: its Flax variable dict, numpy arrays.
    scores: "test" and, if there is such a split, "validation" -> accuracy, in 0..1.
    summary: the run's summary, as in summary.json.
    preprocessing: mean and std of its images, in 0..1, and their size; None for other inputs.
    prepare: batch of stored examples -> batch that the module takes.
    description: what a bundle says of it.
  """

  student: nn.Module
  variables: Mapping[str, Any]
  scores: Mapping[str, float]
  summary: Mapping[str, Any]
  preprocessing: Preprocessing | None
  prepare: Callable[[Batch], Batch] = dataclasses.field(repr=False)
  description: Mapping[str, Any] = dataclasses.field(repr=False)
  module: nn.Module = dataclasses.field(repr=False)

  def predict(self, inputs: Any, *, batch_size: int = 256) -> np.ndarray:
    """Return logits for examples as the data have them, before any normalisation.

    Args:
      inputs: images (N, H, W, C) or (N, H, W), uint8 or floats in 0..1; other inputs as in
        training, with leading axis N.
      batch_size: examples of one step.

    Returns:
      (N, C), or (N, ..., C) of dense logits; of several exits the last one.

    Raises:
      ConfigError: for images of another shape or type, or no example.
    """
    stored = inputs if self.preprocessing is None else as_images(inputs, "predict: images")
    leaves = jax.tree.leaves(stored)
    count = len(leaves[0]) if leaves else 0
    if not count or batch_size < 1:
      raise ConfigError(f"predict: {count} examples, batch_size={batch_size}: expected at least 1")
    if self.preprocessing is not None:
      shape = tuple(self.description["stored_shape"])
      if stored.shape[1:] != shape:
        raise ConfigError(f"predict: images are {stored.shape[1:]}, those of training {shape}")
    step = jax.jit(self._logits)
    found = []
    for start in range(0, count, batch_size):
      rows = np.arange(start, start + batch_size).clip(max=count - 1)  # one shape for all batches
      part = jax.tree.map(lambda leaf, rows=rows: np.asarray(leaf)[rows], stored)
      found.append(np.asarray(step(self.variables, part)))
    return np.concatenate(found)[:count]

  def _logits(self, variables: Any, inputs: Any) -> Any:
    size = len(jax.tree.leaves(inputs)[0])
    zeros = np.zeros(size, np.int32)
    batch = self.prepare(Batch(inputs, zeros, np.ones(size, np.float32), zeros))
    output = self.module.apply(variables, batch.inputs, train=False)
    return (output[-1] if isinstance(output, tuple) else output).logits

  def save(self, path: str | pathlib.Path) -> None:
    """Write the student as a bundle; a bundle at `path` is replaced.

    Raises:
      ConfigError: for a module class that a bundle cannot hold; see `jaxkd.export.save_bundle`.
      DiskError: if it cannot be written.
    """
    network = Network(self.module, self.variables, self.preprocessing)
    bundles.save_bundle(path, network, self.description)


def distill(
  student: nn.Module | str,
  teacher: Any,
  data: Dataset | tuple[Any, Any] | str,
  method: str = "kd",
  *,
  workdir: str | pathlib.Path | None = None,
  config: Mapping[str, Any] | None = None,
  console: Console | None = None,
  reporters: Sequence[Reporter] = (),
  **options: Any,
) -> Result:
  """Train a student, with what a teacher knows, and return it.

  The recipe is SGD with momentum and a cosine schedule; `config` changes any of it. The student
  alone is not trained for comparison, unless `config={"baseline": True}`.

  Args:
    student: a linen module that returns a `jaxkd.types.Output`, or logits alone; or one of
      `jaxkd.models.names()`.
    teacher: a trained `jaxkd.types.Network`, (module, variables), or a list of Networks, which are
      never trained here; the directory of a bundle; one of `jaxkd.models.names()`, trained first;
      or None, for a method without a teacher or with one that `config` names.
    data: a `jaxkd.data.Dataset`; arrays (inputs, labels), of which a fifth is held out for tests
      and a tenth of the rest for validation, with `config={"data.labels": "multi"}` for labels
      (N, C) of several classes; or a name that `jaxkd.data.load` knows.
    method: one of `jaxkd.methods.METHODS`, or a sum such as "kd+at".
    workdir: keeps checkpoints and results, so that the same call resumes; None: a temporary one.
    config: fields of the run's config, such as {"student.optimizer": "adamw", "keep": "best"}.
    console: receives progress; None is standard output.
    reporters: further receivers of the progress.
    **options: `epochs` (30), `batch_size` (64), `learning_rate` (0.05), `seed` (0).

  Raises:
    ConfigError: naming the argument or field, before anything is compiled or written.
  """
  settings, given, load_data = settings_of(student, teacher, data, method, config or {}, options)
  console = Console() if console is None else console
  with tempfile.TemporaryDirectory(prefix="jaxkd-") as temporary:
    place = pathlib.Path(temporary if workdir is None else workdir)
    ready = experiment.prepared(
      settings, place, console, load_data=load_data, given=given, reporters=reporters
    )
    summary, results = experiment.train(ready)
  phase = ready.phases[-1]
  return _result(ready, phase, results[phase.name], summary)


def _result(ready: experiment.Run, phase: Phase, finished: Finished, summary: Any) -> Result:
  """Return the student of the last phase."""
  network = phase.scheme.export(finished.participants)[phase.reported]
  images = network.preprocessing or images_of_run(build.as_seen(ready.settings, ready.data))
  scores = {"test": finished.test[phase.reported]["accuracy"]}
  validated = [
    row["validation"][phase.reported]["accuracy"] for row in finished.rows if "validation" in row
  ]
  if validated:
    scores["validation"] = validated[-1]
    if ready.settings.keep == "best":
      best = best_row(finished.rows, phase)
      scores["validation"] = best["validation"][phase.reported]["accuracy"]
  description = description_of(ready.settings, phase, finished, ready.data, phase.reported)
  if images is not None:
    description["stored_shape"] = list(ready.data.input_shape)
  given = ready.given.student
  plain = getattr(network.module, "module", network.module)
  own = given is not None and type(plain) is type(given) and phase.label == name_of(given)
  return Result(
    student=given if own and given is not None else network.module,
    variables=network.variables,
    scores=scores,
    summary=summary,
    preprocessing=images,
    prepare=phase.prepare_evaluation,
    description=description,
    module=network.module,
  )
