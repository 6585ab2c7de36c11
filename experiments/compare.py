"""Compares methods over several seeds: one table of means and standard deviations.

    python experiments/compare.py --config configs/digits.py --workdir runs/digits-compare

Each seed trains one teacher and one student alone; every method then distils that teacher into a
student that starts from the same weights as the student alone. A method may carry fields of its
own section, "fitnets/two_stage=True/first_epochs=10".

With --one_teacher, seed 0's teaches in every seed. As other seeds hold out other images, which it
has seen, validation is then left out of the table.

With --rates the students are trained at each learning rate instead, and the table tells validation
accuracies only, to choose by.

Every run is resumable, so the same command goes on where it stopped.
"""

import ast
import functools
import importlib.util
import json
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
_SEEDS = flags.DEFINE_integer("seeds", 5, "How many seeds.", lower_bound=1)
_FIRST_SEED = flags.DEFINE_integer("first_seed", 0, "The first of them.", lower_bound=0)
_RATES = flags.DEFINE_list("rates", [], "Learning rates to choose from, by validation.")
_ONE_TEACHER = flags.DEFINE_bool(
  "one_teacher", False, "Seed 0's teacher teaches in every seed, where teachers are dear."
)
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
    for name in ["teacher", *students]:
      if name == "teacher" and seed and _ONE_TEACHER.value:
        continue
      for rate in rates if rates and name != "teacher" else [None]:
        settings = _settings(get_config, name, rate)
        settings.seed = seed
        if name not in ("teacher", "alone"):
          settings.baseline = False
          settings.teacher.bundle = str(bundle)
        run = (name if rate is None else f"{name}/rate={rate:g}").replace("/", ",")
        summary = experiment.run(settings, folder / run, console, load_data=load)
        _collect(run, summary, folder / run, tests, validations)
  text = (
    choice_table(validations, students, rates)
    if rates
    else table(tests, {} if _ONE_TEACHER.value else validations)
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
  for change in changes:
    field, _, value = change.partition("=")
    try:
      settings.method[field] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      settings.method[field] = value
    except (KeyError, TypeError) as error:
      raise ConfigError(f"methods={name!r}: {' '.join(str(error).split())}") from error
  if rate is not None and method == "alone":
    settings.student.learning_rate = rate
  elif rate is not None:
    settings.method.learning_rate = rate
  recipes.check_config(settings)
  return settings


def _collect(
  run: str,
  summary: dict,
  workdir: pathlib.Path,
  tests: Accuracies,
  validations: Accuracies,
) -> None:
  """Appends what the run's last network reached."""
  *_, result = summary["stages"].values()
  tests.setdefault(run, []).append(result["accuracy"])
  last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1]).get("validation")
  if last:
    validations.setdefault(run, []).append(last[result["predictor"]]["accuracy"])


def table(accuracies: Accuracies, validations: Accuracies) -> str:
  """A Markdown table: test accuracy, gain over the student alone, share of the gap closed.

  Gains are paired by seed; the share is of the mean gap.
  """
  lines = [
    "| network | test accuracy, % | minus alone, points | gap closed | validation accuracy, % |",
    "|---|---|---|---|---|",
  ]
  gap = statistics.mean(accuracies["teacher"]) - statistics.mean(accuracies["alone"])
  for method, values in accuracies.items():
    cells = [{"alone": "student alone"}.get(method, method), _spread(values), "", ""]
    if method not in ("teacher", "alone"):
      gains = [a - b for a, b in zip(values, accuracies["alone"], strict=True)]
      closed = f"{statistics.mean(gains) / gap:.0%}" if gap > 0 else "no gap"
      cells = [f"student, {method}", _spread(values), _spread(gains, "+"), closed]
    cells.append(_spread(validations[method]) if method in validations else "")
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
