"""Compares methods over several seeds: one table of means and standard deviations.

    python experiments/compare.py --config configs/digits.py --workdir runs/digits-compare

Each seed trains one teacher and one student alone; every method then distils that teacher into a
student that starts from the same weights as the student alone. A method may carry fields of its
own section, "fitnets/two_stage=True/first_epochs=10", several names as "at/stages=stage2+stage3";
--set changes other fields for all of them, "student.model=msdnet_small".

With --one_teacher, seed 0's teaches in every seed. As other seeds hold out other images, which it
has seen, validation is then left out of the table.

With --every_predictor there is a row for every peer, branch, exit, ensemble and generation, and one
for the mean of each kind; gains are then over the same predictor of the run that --against names,
or over that run's only one.

With --rates the students are trained at each learning rate instead, and the table tells validation
accuracies only, to choose by. With one rate it is the usual one, of the students at that rate; a
method that names its own, "simkd/learning_rate=1.6", keeps it.

Every run is resumable, so the same command goes on where it stopped.
"""

import ast
import functools
import importlib.util
import json
import operator
import pathlib
import sys
from collections.abc import Callable

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict
from rich.console import Console

from jaxkd import data, experiment, recipes, report
from jaxkd.errors import ConfigError
from jaxkd.train import devices

_CONFIG = flags.DEFINE_string("config", None, "Config file, without a method.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs go.")
_METHODS = flags.DEFINE_list("methods", ["kd", "fitnets", "at", "simkd"], "Methods to compare.")
_SET = flags.DEFINE_list("set", [], "Fields of the config that all runs have otherwise.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "How many seeds.", lower_bound=1)
_FIRST_SEED = flags.DEFINE_integer("first_seed", 0, "The first of them.", lower_bound=0)
_RATES = flags.DEFINE_list("rates", [], "Learning rates to choose from, by validation.")
_ONE_TEACHER = flags.DEFINE_bool(
  "one_teacher", False, "Seed 0's teacher teaches in every seed, where teachers are dear."
)
_EVERY_PREDICTOR = flags.DEFINE_bool(
  "every_predictor", False, "Rows for all predictors, not only for what a run is reported by."
)
_AGAINST = flags.DEFINE_string("against", "alone", "The run that gains are counted from.")
_CPU_DEVICES = flags.DEFINE_integer(
  "cpu_devices", 0, "XLA devices on the CPU; 0 is one per core. 1 where several commands share it."
)
_OUTPUT = flags.DEFINE_string("output", None, "Also write the table to this Markdown file.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
  """Runs whatever is missing and prints the table."""
  del argv
  logging.set_verbosity(logging.WARNING)
  get_config = _load(pathlib.Path(_CONFIG.value))
  rates = [float(rate) for rate in _RATES.value]
  students = ["alone", *_METHODS.value]
  for student in students:
    _settings(get_config, student, rates[0] if rates else None)
  if _AGAINST.value not in students:
    raise ConfigError(f"against={_AGAINST.value!r}: expected one of {', '.join(students)}")
  taught = [student for student in students if _needs_teacher(student)]
  networks = ["teacher", *students] if taught else students
  devices.split_cpu(_CPU_DEVICES.value, get_config("alone").batch_size)
  workdir, console = pathlib.Path(_WORKDIR.value), Console()
  # Another seed's steps are the same programs.
  jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
  # One seed's runs share its data.
  load = functools.lru_cache(maxsize=1)(data.load)

  runs: dict[tuple[str, float | None], list[pathlib.Path]] = {}
  for seed in range(_FIRST_SEED.value, _FIRST_SEED.value + _SEEDS.value):
    folder = workdir / f"seed{seed}"
    home = workdir / "seed0" if _ONE_TEACHER.value else folder
    bundle = home / "teacher" / "bundles" / "teacher" / "teacher"
    for name in networks:
      if name == "teacher" and seed and _ONE_TEACHER.value:
        continue
      for rate in rates if rates and name != "teacher" else [None]:
        settings = _settings(get_config, name, rate)
        settings.seed = seed
        if name not in ("teacher", "alone"):
          settings.baseline = False
        if name in taught:
          settings.teacher.bundle = str(bundle)
        run = (name if rate is None else f"{name}/rate={rate:g}").replace("/", ",")
        experiment.run(settings, folder / run, console, load_data=load)
        runs.setdefault((name, rate), []).append(folder / run)

  if len(rates) > 1:
    validations = {
      student: {rate: _validation(runs[student, rate]) for rate in rates} for student in students
    }
    text = report.choice_table(validations)
  else:
    text = _compared({name: folders for (name, _), folders in runs.items()}, workdir)
  console.print(text, soft_wrap=True, highlight=False)
  if _OUTPUT.value:
    command = f"python experiments/compare.py {' '.join(sys.argv[1:])}"
    report.write_atomically(pathlib.Path(_OUTPUT.value), f"Written by `{command}`.\n\n{text}\n")


def _compared(runs: dict[str, list[pathlib.Path]], workdir: pathlib.Path) -> str:
  """The table of finished runs, a folder for each seed; leaves the figures in `workdir`."""
  tests: report.Accuracies = {}
  validations: report.Accuracies = {}
  for name, folders in runs.items():
    for folder in folders:
      stages = json.loads((folder / "summary.json").read_text())["stages"]
      rows = _validated(stages, folder)
      for table, scored in ((tests, stages), (validations, rows)):
        found = report.run_accuracies(
          name.replace("/", ","), scored, every_predictor=_EVERY_PREDICTOR.value
        )
        for row, accuracy in found.items():
          table.setdefault(row, []).append(accuracy)
  report.write_atomically(workdir / "comparison.json", json.dumps(tests, indent=2) + "\n")
  # Where another seed's teacher has seen the images, validation tells nothing.
  shown = {} if _ONE_TEACHER.value else validations
  return report.comparison_table(tests, shown, against=_AGAINST.value.replace("/", ","))


def _validation(folders: list[pathlib.Path]) -> list[float]:
  """The last validation accuracies of runs, by what stands for each."""
  found = []
  for folder in folders:
    stages = json.loads((folder / "summary.json").read_text())["stages"]
    validated = report.run_accuracies("", _validated(stages, folder))
    if not validated:
      raise ConfigError(f"rates are chosen by validation, of which the run in {folder} has none")
    found += validated.values()
  return found


def _validated(stages: dict, folder: pathlib.Path) -> dict:
  """The stages of a run's summary with their last validation scores as "test"."""
  last = {}
  for line in (folder / "metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    last[row["stage"]] = row.get("validation", {})
  return {
    stage: {**result, "test": last[stage]} for stage, result in stages.items() if last.get(stage)
  }


def _settings(get_config: Callable[[str], ConfigDict], name: str, rate: float | None) -> ConfigDict:
  """The config of "METHOD/field=value/...", checked, at another learning rate if one is given."""
  method, *changes = name.split("/")
  settings = get_config(method)
  changes = [*_SET.value, *(f"method.{change}" for change in changes)]
  for change in changes:
    path, _, value = change.partition("=")
    *sections, field = path.split(".")
    try:
      where = functools.reduce(operator.getitem, sections, settings)
      where[field] = _literal(value)
    except (KeyError, TypeError) as error:
      raise ConfigError(f"{change!r}: {' '.join(str(error).split())}") from error
  if rate is not None and method == "alone":
    settings.student.learning_rate = rate
  elif rate is not None and not any(x.startswith("method.learning_rate=") for x in changes):
    settings.method.learning_rate = rate
  recipes.check_config(settings)
  return settings


def _literal(value: str) -> object:
  try:
    return ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return tuple(value.split("+")) if "+" in value else value


def _needs_teacher(name: str) -> bool:
  methods = recipes.methods(name.split("/")[0]).values()
  return all(method.distils and not method.without_teacher for method in methods)


def _load(path: pathlib.Path) -> Callable[[str], ConfigDict]:
  """The `get_config` of a config file."""
  if not path.is_file():
    raise ConfigError(f"config={str(path)!r}: there is no such file")
  spec = importlib.util.spec_from_file_location("config", path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config


if __name__ == "__main__":
  try:
    app.run(main)
  except ConfigError as error:
    sys.exit(f"error: {error}")
