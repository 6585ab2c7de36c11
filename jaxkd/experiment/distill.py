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
  import ml_collections
  from rich.console import Console

from jaxkd import methods, models
from jaxkd.data import Dataset, check_name, load
from jaxkd.data.arrays import as_images
from jaxkd.errors import ConfigError, one_line, unknown_name
from jaxkd.experiment import build, config
from jaxkd.experiment import run as experiment
from jaxkd.experiment.given import Given, name_of
from jaxkd.experiment.given_data import data_set
from jaxkd.experiment.stated_images import images_of_run
from jaxkd.export import bundles
from jaxkd.fields import Field
from jaxkd.shapes import described
from jaxkd.train import Finished, Phase, Reporter
from jaxkd.types import Batch, Network, Preprocessing

# Option -> the fields that it sets.
OPTIONS: Mapping[str, tuple[str, ...]] = {
  "epochs": ("student.epochs", "teacher.epochs"),
  "batch_size": ("batch_size",),
  "learning_rate": ("student.learning_rate", "teacher.learning_rate"),
  "seed": ("seed",),
}
# Fields of "teacher" that name a trained one.
_TRAINED = ("bundle", "weights", "stablehlo", "logits")
# Fraction of all examples of arrays that is held out for the test score.
_TEST = 0.2
_EPOCHS = 30


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
      and a tenth of the rest for validation; or a name that `jaxkd.data.load` knows.
    method: one of `jaxkd.methods.METHODS`, or a sum such as "kd+at".
    workdir: keeps checkpoints and results, so that the same call resumes; None: a temporary one.
    config: fields of the run's config, such as {"student.optimizer": "adamw", "keep": "best"}.
    console: receives progress; None is standard output.
    reporters: further receivers of the progress.
    **options: `epochs` (30), `batch_size` (64), `learning_rate` (0.05), `seed` (0).

  Raises:
    ConfigError: naming the argument or field, before anything is compiled or written.
  """
  settings, given, load_data = _settings(student, teacher, data, method, config or {}, options)
  console = Console() if console is None else console
  with tempfile.TemporaryDirectory(prefix="jaxkd-") as temporary:
    place = pathlib.Path(temporary if workdir is None else workdir)
    ready = experiment.prepared(
      settings, place, console, load_data=load_data, given=given, reporters=reporters
    )
    summary, results = experiment.train(ready)
  phase = ready.phases[-1]
  return _result(ready, phase, results[phase.name], summary)


def _settings(
  student: Any,
  teacher: Any,
  data: Any,
  method: str,
  changes: Mapping[str, Any],
  options: Mapping[str, Any],
) -> tuple[ml_collections.ConfigDict, Given, Callable[..., Dataset]]:
  """Return the config of a call, checked, its networks, and the function that loads its data."""
  if not isinstance(method, str):
    raise ConfigError(f"method={method!r}: expected a name, one of {', '.join(methods.METHODS)}")
  if method == "teacher":
    raise ConfigError("method='teacher' trains no student: expected another method")
  settings = config.base_config(method)
  settings.baseline = False
  for section in (settings.student, settings.teacher):
    section.schedule, section.epochs = "cosine", _EPOCHS
  for name, value in options.items():
    if name not in OPTIONS:
      raise unknown_name("option of distill", name, [*OPTIONS, "config", "workdir", "console"])
    for path in OPTIONS[name]:
      _set(settings, path, value, name)
  for path, value in changes.items():
    _set(settings, path, value, f"config: {path}")
  given = Given(_student(settings, student), _teachers(settings, teacher, method))
  load_data = _data(settings, data)
  config.check_config(settings)
  return settings, given, load_data


def _set(settings: ml_collections.ConfigDict, path: str, value: Any, named: str) -> None:
  """Set a field of a config.

  Raises:
    ConfigError: for an unknown field, and a value that it does not accept.
  """
  known: Any = config.fields(settings.method.name)
  section: Any = settings
  *parents, last = str(path).split(".")
  for number, part in enumerate([*parents, last]):
    if not isinstance(known, Mapping) or part not in known:
      raise unknown_name("field of the config", path, _paths(config.fields(settings.method.name)))
    known = known[part]
    section = section[part] if number < len(parents) else section
  if not isinstance(known, Field):
    raise ConfigError(
      f"{named}: expected a field of the section, such as {path}.{next(iter(known))}"
    )
  if path in ("method.name", "data.name", "student.model", "teacher.model"):
    raise ConfigError(f"{named}: expected the argument {path.partition('.')[0]} in its place")
  value = value.item() if isinstance(value, np.generic) else value
  if not known.accepts(value):
    raise ConfigError(f"{named}={value!r}: expected {known.meaning}")
  try:
    section[last] = value
  except TypeError as error:
    raise ConfigError(f"{named}={value!r}: {one_line(error)}") from error


def _paths(fields: Mapping[str, Any], above: str = "") -> list[str]:
  """Return the paths of all fields."""
  paths = []
  for name, field in fields.items():
    path = f"{above}{name}"
    paths += [path] if isinstance(field, Field) else _paths(field, f"{path}.")
  return paths


def _student(settings: ml_collections.ConfigDict, student: Any) -> nn.Module | None:
  """Set `student.model`; return the student if it is a module."""
  if isinstance(student, str):
    settings.student.model = student
    return None
  if not isinstance(student, nn.Module):
    kind = student.__name__ if isinstance(student, type) else type(student).__name__
    raise ConfigError(
      f"student: expected a linen module or one of jaxkd.models.names(), got {kind}"
    )
  settings.student.model = name_of(student)
  return student


def _teachers(
  settings: ml_collections.ConfigDict, teacher: Any, method: str
) -> tuple[Network, ...]:
  """Set the fields of the teacher; return the trained networks, if they are given."""
  section = settings.teacher
  taught = methods.is_taught(method)
  if teacher is None:
    if taught and not any(section[field] for field in _TRAINED):
      raise ConfigError(
        f"teacher=None: method {method!r} learns from a teacher: expected a jaxkd.types.Network, "
        "(module, variables), the directory of a bundle, or one of jaxkd.models.names()"
      )
    return ()
  if not taught:
    raise ConfigError(f"teacher: expected None, as method {method!r} has no trained teacher")
  for field in _TRAINED:
    if section[field]:
      raise ConfigError(
        f"config: teacher.{field}={section[field]!r}: expected teacher=None with it"
      )
  if isinstance(teacher, pathlib.Path) or (isinstance(teacher, str) and _is_path(teacher)):
    if not pathlib.Path(teacher).is_dir():
      raise ConfigError(
        f"teacher={str(teacher)!r}: there is no such directory, and no such model: expected a "
        f"bundle, or one of {', '.join(models.names())}"
      )
    section.bundle, section.model = str(teacher), ""
    return ()
  if isinstance(teacher, str):
    section.model = teacher
    return ()
  networks = [_network(one) for one in (teacher if _is_several(teacher) else [teacher])]
  names = [name_of(one.module, one.variables) for one in networks]
  section.model, section.count = "+".join(names), len(networks)
  return tuple(networks)


def _is_several(teacher: Any) -> bool:
  return isinstance(teacher, list) and bool(teacher)


def _is_path(text: str) -> bool:
  if text in models.names() or models.imported.is_own(text):
    return False
  return "/" in text or pathlib.Path(text).exists()


def _network(teacher: Any) -> Network:
  """Return a trained teacher as a Network.

  Raises:
    ConfigError: for anything but a module with its variables.
  """
  if isinstance(teacher, tuple) and len(teacher) == 2 and isinstance(teacher[0], nn.Module):
    network = teacher if isinstance(teacher, Network) else Network(*teacher)
    if isinstance(network.variables, Mapping) and "params" in network.variables:
      return network
    raise ConfigError(
      f"teacher {type(network.module).__name__}: expected its variables, "
      f"{{'params': ...}}, got {_kind(network.variables)}"
    )
  hint = " without its variables" if isinstance(teacher, nn.Module) else ""
  raise ConfigError(
    f"teacher: expected a jaxkd.types.Network, (module, variables), the directory of a bundle, one "
    f"of jaxkd.models.names() or None, got {_kind(teacher)}{hint}"
  )


def _kind(value: Any) -> str:
  if isinstance(value, Mapping):
    return f"a mapping with {', '.join(map(str, list(value)[:5])) or 'nothing'}"
  return f"a {type(value).__name__}"


def _data(settings: ml_collections.ConfigDict, data: Any) -> Callable[..., Dataset]:
  """Set `data.name`; return the function that loads the data set."""
  if isinstance(data, str):
    settings.data.name = data
    check_name(data)
    return load
  section = settings.data
  if section.image_size:
    raise ConfigError(
      f"config: data.image_size={section.image_size}: expected 0 with data of a program; "
      "jaxkd.data.from_arrays(..., image_size=...) resizes images"
    )
  seed = section.split_seed if section.split_seed >= 0 else settings.seed
  found = data_set(data, validation=section.validation, test=section.test or _TEST, seed=seed)
  section.name = found.name
  return lambda *_, **__: found


def _result(ready: experiment.Run, phase: Phase, finished: Finished, summary: Any) -> Result:
  """Return the student of the last phase."""
  network = phase.scheme.export(finished.participants)[phase.reported]
  seen = build.as_seen(ready.settings, ready.data)
  images = network.preprocessing or images_of_run(seen)
  scores = {"test": finished.test[phase.reported]["accuracy"]}
  validated = [
    row["validation"][phase.reported]["accuracy"] for row in finished.rows if "validation" in row
  ]
  if validated:
    best = ready.settings.keep == "best"
    scores["validation"] = max(validated) if best else validated[-1]
  where: dict[str, Any] = (
    {"inputs": described(seen.input_shape)} if images is None else bundles.described(images)
  )
  if images is not None:
    where["stored_shape"] = list(ready.data.input_shape)
  description = {
    "model": phase.label,
    "data": ready.data.name,
    "num_classes": ready.data.num_classes,
    **where,
    "method": ready.settings.method.name,
    "stage": phase.name,
    "predictor": phase.reported,
    "test_accuracy": scores["test"],
  }
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
