"""Compares methods over several seeds: one table of means and standard deviations.

    python experiments/compare.py --config configs/digits.py --workdir runs/digits-compare

Each seed trains one teacher and one student alone; every method then distils that teacher into a
student that starts from the same weights as the student alone. A method may carry fields of its
own section, "fitnets/two_stage=True/first_epochs=10"; --set changes other fields for all of them,
"student.model=msdnet_small".

With --one_teacher, seed 0's teaches in every seed. As other seeds hold out other images, which it
has seen, validation is then left out of the table.

With --every_predictor there is a row for every peer, branch, exit, ensemble and generation, and one
for the mean of each kind; gains are then over the same predictor of the run that --against names,
or over that run's only one.

With --rates the students are trained at each learning rate instead, and the table tells validation
accuracies only, to choose by.

Every run is resumable, so the same command goes on where it stopped.
"""

import ast
import functools
import importlib.util
import json
import operator
import pathlib
import statistics
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

Accuracies = dict[str, list[float]]


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

  tests: Accuracies = {}
  validations: Accuracies = {}
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
        summary = experiment.run(settings, folder / run, console, load_data=load)
        _collect(run, summary, folder / run, tests, validations)
  text = (
    choice_table(validations, students, rates)
    if rates
    else table(tests, {} if _ONE_TEACHER.value else validations, _AGAINST.value)
  )
  console.print(text, soft_wrap=True, highlight=False)
  report.write_atomically(workdir / "comparison.json", json.dumps(tests, indent=2) + "\n")
  if _OUTPUT.value:
    command = f"python experiments/compare.py {' '.join(sys.argv[1:])}"
    report.write_atomically(pathlib.Path(_OUTPUT.value), f"Written by `{command}`.\n\n{text}\n")


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
  elif rate is not None:
    settings.method.learning_rate = rate
  recipes.check_config(settings)
  return settings


def _literal(value: str) -> object:
  try:
    return ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return value


def _needs_teacher(name: str) -> bool:
  methods = recipes.methods(name.split("/")[0]).values()
  return all(method.distils and not method.without_teacher for method in methods)


def _collect(
  run: str,
  summary: dict,
  workdir: pathlib.Path,
  tests: Accuracies,
  validations: Accuracies,
) -> None:
  """Appends what the run's last network reached, or every network of it."""
  last = {}
  for line in (workdir / "metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    last[row["stage"]] = row.get("validation", {})
  stages = summary["stages"]
  *_, stage = stages
  if not _EVERY_PREDICTOR.value or len(stages[stage]["test"]) == 1:
    predictor = stages[stage]["predictor"]
    _append(run, predictor, {predictor: stages[stage]["test"][predictor]}, tests)
    _append(run, predictor, {p: v for p, v in last[stage].items() if p == predictor}, validations)
    return
  for stage, result in stages.items():
    if stage != "teacher" and result["predictor"]:
      name = run if stage == "distilled" or run == "alone" else f"{run}, {stage}"
      _append(name, "", result["test"], tests)
      _append(name, "", last[stage], validations)


def _append(
  run: str, only: str, scores: dict[str, dict[str, float]], accuracies: Accuracies
) -> None:
  """Appends the predictors' accuracies, and the mean of several of a kind (peer_0, peer_1)."""
  kinds: dict[str, list[float]] = {}
  for predictor, values in scores.items():
    name = run if predictor == only else f"{run}: {predictor}"
    accuracies.setdefault(name, []).append(values["accuracy"])
    kinds.setdefault(predictor.rpartition("_")[0], []).append(values["accuracy"])
  for kind, each in kinds.items():
    if kind and len(each) > 1:
      accuracies.setdefault(f"{run}: mean {kind}", []).append(statistics.mean(each))


def table(accuracies: Accuracies, validations: Accuracies, against: str = "alone") -> str:
  """A Markdown table: test accuracy, gain over another run, share of the gap closed.

  Gains are paired by seed; the share, where there is a teacher, is of its mean gap to the student
  alone.
  """
  heads = "network", "test accuracy, %", f"minus {against}, points", "gap closed"
  lines = [f"| {' | '.join(heads)} | validation accuracy, % |", "|---|---|---|---|---|"]
  gap = 0.0
  if "teacher" in accuracies:
    gap = statistics.mean(accuracies["teacher"]) - statistics.mean(accuracies["alone"])
  for name, values in accuracies.items():
    predictor = name.partition(": ")[2]
    cells = [{"alone": "student alone"}.get(name, name), _spread(values), "", ""]
    if name not in ("teacher", "alone"):
      cells[0] = f"student, {name}"
    basis = next(n for n in (f"{against}: {predictor}", against, name) if n in accuracies)
    if name not in ("teacher", basis):
      gains = [a - b for a, b in zip(values, accuracies[basis], strict=True)]
      cells[2] = _spread(gains, "+")
      if against == "alone" and "teacher" in accuracies:
        cells[3] = f"{statistics.mean(gains) / gap:.0%}" if gap > 0 else "no gap"
    cells.append(_spread(validations[name]) if name in validations else "")
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def choice_table(validations: Accuracies, students: list[str], rates: list[float]) -> str:
  """A Markdown table of validation accuracies, a student a row, a learning rate a column."""
  heads = ["student", *(f"rate {rate:g}" for rate in rates), "best"]
  lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
  for name in students:
    runs = [validations[f"{name}/rate={rate:g}".replace("/", ",")] for rate in rates]
    best = max(zip(rates, runs, strict=True), key=lambda pair: statistics.mean(pair[1]))[0]
    cells = [name.replace("/", ", "), *(_spread(values) for values in runs), f"{best:g}"]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def _spread(values: list[float], sign: str = "") -> str:
  """Mean and sample standard deviation, in percent."""
  mean = f"{100 * statistics.mean(values):{sign}.2f}"
  return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


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
