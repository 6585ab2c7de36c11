"""The report of a trained student: its bundles, and those of its teacher and of a baseline."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.errors import needed_by

with needed_by("jaxkd.experiment.student_report"):
  from ml_collections import ConfigDict

from jaxkd import data, evaluate, models, report
from jaxkd.errors import ConfigError, one_line
from jaxkd.evaluate.budgeted import budgeted_curve
from jaxkd.experiment import build, config
from jaxkd.experiment.compared_features import compared
from jaxkd.experiment.own_models import allowed
from jaxkd.experiment.predictions import Predictor, predictions, predictor
from jaxkd.experiment.results import read_summary
from jaxkd.experiment.student_costs import costs
from jaxkd.export import bundles, scores

# Number of budgets of early exit, from the cost of the first exit to that of all.
_BUDGETS = 5


@dataclasses.dataclass(frozen=True)
class Sources:
  """The bundles of a report.

  Attributes:
    student: a predictor's bundle, or a run's work directory, of which all predictors of the
      distilled student are reported.
    teacher: the teacher's bundle; None is the one of the student's run, if it has one.
    baseline: the bundle of the student trained alone, likewise.
    data: name of the data set; None is the one that the student's bundle names.
    directory: TFDS's data directory.
    allow: packages whose code the bundles may import.
  """

  student: pathlib.Path
  teacher: pathlib.Path | None = None
  baseline: pathlib.Path | None = None
  data: str | None = None
  directory: str | None = None
  allow: Sequence[str] = ()


def student_report(sources: Sources, batch_size: int = 256) -> report.StudentReport:
  """Compute the report of a student.

  The temperature and the thresholds of early exit are fitted to the validation split of the
  student's run. A bundle outside its run, or another data set, has none.

  Args:
    sources: the bundles.
    batch_size: examples of one step.

  Raises:
    ConfigError: naming the bundle, for other classes, images or inputs than the data set has, and
      for logits that are not finite.
  """
  sources = _of_run(sources)
  found = _found(sources.student)
  dataset, validation = _data(sources, next(iter(found.values())))
  students = {n: _loaded(n, path, dataset, sources) for n, path in found.items()}
  others = {
    name: _loaded(name, path, dataset, sources)
    for name, path in (("teacher", sources.teacher), ("baseline", sources.baseline))
    if path is not None
  }
  logits: dict[str, np.ndarray] = {}
  for name, subject in {**students, **others}.items():
    logits[name], labels = predictions(subject, dataset.test, batch_size)
  held_out = None
  if validation is not None:
    pairs = {n: predictions(s, validation, batch_size) for n, s in students.items()}
    held_out = {n: pair[0] for n, pair in pairs.items()}, next(iter(pairs.values()))[1]
  try:
    tree = evaluate.report(
      {name: logits[name] for name in students},
      labels,
      logits.get("teacher"),
      baseline_logits=logits.get("baseline"),
      validation=held_out,
      class_names=dataset.class_names,
    )
  except ConfigError as error:
    raise ConfigError(f"bundle {sources.student}: {error}") from error
  tree["data"] = dataset.name
  tree["bundles"] = {
    **{name: str(path) for name, path in found.items()},
    **{name: str(getattr(sources, name)) for name in others},
  }
  tree["costs"] = {name: costs(subject) for name, subject in {**students, **others}.items()}
  tree["notes"] += [entry["note"] for entry in tree["costs"].values() if entry["note"]]
  tree["early_exit"] = _early_exit(students, logits, labels, held_out)
  main = _main(students)
  tree["main"] = main
  numbers = [row["image"] for row in tree["worst"].get(main, [])]
  counted = np.flatnonzero(np.asarray(dataset.test.labels) != data.UNLABELLED)
  pictures = compared(students[main], others.get("teacher"), counted[numbers])
  tree["cka"] = pictures.cka
  return report.StudentReport(tree, pictures.images, pictures.maps)


def write_report_of_run(
  workdir: pathlib.Path, baseline: pathlib.Path | None = None
) -> tuple[pathlib.Path, report.StudentReport]:
  """Write the report of a finished run to WORKDIR/report; return its page and content.

  Args:
    workdir: the run's work directory.
    baseline: bundle of the student trained alone, if it is not in this run.

  Raises:
    ConfigError: as `student_report`; if the run left no bundle of a student.
  """
  settings = ConfigDict(read_summary(workdir)["config"])
  # The code that the config names is that of the run.
  allow = [*allowed(settings.teacher), *allowed(settings.student)]
  found = student_report(Sources(workdir, baseline=baseline, allow=allow))
  title = f"{settings.method.name} on {settings.data.name}, seed {settings.seed}"
  return report.write_student_report(workdir / "report", found, title), found


def reported_bundle(workdir: pathlib.Path) -> pathlib.Path | None:
  """Return the bundle of the reported predictor of a finished run's last phase, if it has one."""
  phase, row = list(read_summary(workdir)["stages"].items())[-1]
  path = workdir / "bundles" / phase / str(row["predictor"])
  return path if row["predictor"] and path.is_dir() else None


def _of_run(sources: Sources) -> Sources:
  """Return sources whose student is below its phase, and whose others are those of its run."""
  if not (sources.student / "summary.json").is_file():
    return sources
  root, summary = sources.student / "bundles", read_summary(sources.student)
  phases = report.phases_by_role(summary["stages"])
  if "student" not in phases:
    phases["student"] = list(summary["stages"])[-1]
  filled: dict[str, pathlib.Path] = {}
  for role in ("teacher", "baseline"):
    phase = phases.get(role, "")
    path = root / phase / str(summary["stages"].get(phase, {}).get("predictor", ""))
    if (path / "model.json").is_file() and phase != phases["student"]:
      filled[role] = path
  if "teacher" not in filled and (given := summary["config"]["teacher"].get("bundle", "")):
    filled["teacher"] = pathlib.Path(given)
  return dataclasses.replace(
    sources,
    student=root / phases["student"],
    teacher=sources.teacher or filled.get("teacher"),
    baseline=sources.baseline or filled.get("baseline"),
  )


def _found(path: pathlib.Path) -> dict[str, pathlib.Path]:
  """Return the student's bundles by the names that they have in the report."""
  found = scores.find_bundles(path)
  if len(found) == 1:
    return {"student": next(iter(found.values()))}
  if taken := {name.rpartition("/")[2] for name in found} & {"teacher", "baseline"}:
    raise ConfigError(
      f"bundle={str(path)!r} holds a predictor {min(taken)!r}: expected one student's bundle, or "
      "the directory of a finished run"
    )
  short = {name.rpartition("/")[2] or "student": bundle for name, bundle in found.items()}
  return short if len(short) == len(found) else found


def _data(sources: Sources, bundle: pathlib.Path) -> tuple[data.Dataset, data.Examples | None]:
  """Return the data set, and the validation examples of the run to which a bundle belongs."""
  settings = _settings_of(bundle)
  own = settings is not None and sources.data in (None, settings.data.name)
  if settings is not None and own:
    if sources.directory:
      settings.data.directory = sources.directory
    dataset = build.dataset(settings)
    return dataset, dataset.validation
  _, description = bundles.load_bundle(bundle, allow=sources.allow)
  try:
    found = scores.data_of(description, sources.data, directory=sources.directory, load=data.load)
  except ConfigError as error:
    raise ConfigError(f"bundle {bundle}: {error}") from error
  return found, None


def _settings_of(bundle: pathlib.Path) -> ConfigDict | None:
  """Return the config of the run whose bundle it is, with the fields that it lacks; else None."""
  for folder in bundle.resolve().parents[:3]:
    path = folder / "config.json"
    if not path.is_file() or not (folder / "bundles").is_dir():
      continue
    try:
      stored = json.loads(path.read_text())
      settings = config.base_config(stored["method"]["name"])
      settings.data.update(stored["data"])
      settings.seed = stored["seed"]
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
      raise ConfigError(f"{path} is damaged: {one_line(error)}") from error
    return settings
  return None


def _loaded(name: str, bundle: pathlib.Path, dataset: data.Dataset, sources: Sources) -> Predictor:
  network, description = bundles.load_bundle(bundle, allow=sources.allow)
  if getattr(dataset.test, "multi_label", False):
    raise ConfigError(
      f"data set {dataset.name!r} has several classes per example: a report is of one class each"
    )
  try:
    return predictor(name, network, description, dataset)
  except ConfigError as error:
    raise ConfigError(f"bundle {bundle}: {error}") from error


def _main(students: Mapping[str, Predictor]) -> str:
  """Return the predictor whose pictures are shown: the student, else the last one with stages."""
  return "student" if "student" in students else list(students)[-1]


def _early_exit(
  students: Mapping[str, Predictor],
  logits: Mapping[str, np.ndarray],
  labels: np.ndarray,
  held_out: tuple[Mapping[str, np.ndarray], np.ndarray] | None,
) -> dict[str, Any] | None:
  """Return accuracy by exit, and by budget with the thresholds; None for other networks."""
  exits = sorted((n for n in students if n.startswith("exit_")), key=lambda n: int(n[5:]))
  shape = students[exits[0]].dataset.image_shape if exits else None
  if "ensemble" not in students or shape is None:
    return None
  try:
    inside = models.exits_inside(students["ensemble"].network)
  except ConfigError:  # an ensemble of branches, which have no early exit
    return None
  taken = students["ensemble"].description["image_shape"]
  spent = evaluate.exit_costs(inside.module, inside.variables, taken)
  if len(spent) != len(exits):
    return None
  of_test = np.stack([logits[name] for name in exits], axis=1)
  found: dict[str, Any] = {"anytime": evaluate.anytime_curve(of_test, labels, spent), "budgets": []}
  if held_out is not None:
    fitted_to = np.stack([held_out[0][name] for name in exits], axis=1)
    budgets = [float(budget) for budget in np.linspace(spent[0], spent[-1], _BUDGETS)]
    found["budgets"] = budgeted_curve(fitted_to, of_test, labels, spent, budgets)
    for row in found["budgets"]:
      # JSON has no infinity; float("inf") reads the text.
      row["thresholds"] = [t if np.isfinite(t) else str(t) for t in row["thresholds"]]
  return found
