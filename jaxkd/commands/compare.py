"""Compare methods over several seeds: one table of means and standard deviations.

    jaxkd compare --config configs/digits.py --workdir runs/digits-compare

Each seed trains one teacher and one student alone; every method then distils that teacher into a
student that starts from the same weights as the student alone. A method may carry fields of its
own section, "fitnets/two_stage=True/first_epochs=10", several names as "at/stages=stage2+stage3",
and any other field by its path, "simkd/student.epochs=40/data.per_class=5". --set changes fields
for all of them, "student.model=msdnet_small". A method may also come from another config file,
"configs/fashion_mnist.py:kd/weight=0.5". Each file, and each change of "teacher." fields, has a
teacher of its own.

With --one_teacher, the teacher of seed 0 is used in every seed. Other seeds hold out images that it
was trained on, so the table then has no validation accuracies.

With --every_predictor there is a row for every peer, branch, exit, ensemble and generation, and one
for the mean of each kind. Gains are then over the same predictor of the run that --against names,
or over its only predictor.

With several --rates the students are trained at each learning rate, and the table has validation
accuracies alone, for the choice of a rate. With one rate the table is the usual one, of students at
that rate; a method that names its own, "simkd/learning_rate=1.6", keeps it.

--report FILE.html writes the report of every student to its folder, and one page that links them.

--plot draws the means of the table with their 95% intervals.

The runs are spread over the machine's cores or devices; the output of each is in WORKDIR/logs. The
same command resumes.
"""

import functools
import json
import pathlib
import sys
from collections.abc import Mapping

from jaxkd.errors import needed_by

with needed_by("jaxkd compare"):
  from absl import flags, logging
  from ml_collections import ConfigDict
  from rich.console import Console

  from jaxkd import commands, methods, report
  from jaxkd.errors import ConfigError
  from jaxkd.experiment import config, overrides, sweep
  from jaxkd.experiment import run as experiment

FLAGS = flags.FlagValues()

_CONFIG = flags.DEFINE_string(
  "config", None, "Config file, without a method.", required=True, flag_values=FLAGS
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where the runs go.", required=True, flag_values=FLAGS
)
_METHODS = flags.DEFINE_list(
  "methods",
  ["kd", "fitnets", "at", "simkd"],
  "Methods to compare: METHOD/field=value/... or FILE.py:METHOD/field=value/...",
  flag_values=FLAGS,
)
_SET = flags.DEFINE_list(
  "set", [], "Fields of the config that all runs have otherwise.", flag_values=FLAGS
)
_SEEDS = flags.DEFINE_integer("seeds", 5, "How many seeds.", lower_bound=1, flag_values=FLAGS)
_FIRST_SEED = flags.DEFINE_integer(
  "first_seed", 0, "The first of them.", lower_bound=0, flag_values=FLAGS
)
_RATES = flags.DEFINE_list(
  "rates", [], "Learning rates to choose from, by validation.", flag_values=FLAGS
)
_ONE_TEACHER = flags.DEFINE_bool(
  "one_teacher",
  False,
  "Use the teacher of seed 0 in every seed, where teachers are expensive.",
  flag_values=FLAGS,
)
_EVERY_PREDICTOR = flags.DEFINE_bool(
  "every_predictor",
  False,
  "Rows for all predictors, not only for the reported one of each run.",
  flag_values=FLAGS,
)
_AGAINST = flags.DEFINE_string(
  "against", "alone", "The run that gains are counted from.", flag_values=FLAGS
)
_WORKERS = flags.DEFINE_integer(
  "workers",
  0,
  "Runs at a time; 0 is one per core or accelerator device.",
  lower_bound=0,
  flag_values=FLAGS,
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "Also write the table to this Markdown file.", flag_values=FLAGS
)
_PLOT = flags.DEFINE_string(
  "plot", None, "Also draw the means to this PNG file.", flag_values=FLAGS
)

_REPORT = flags.DEFINE_string(
  "report",
  None,
  "Also write every student's report, and this HTML page of links.",
  flag_values=FLAGS,
)

# Fields of a teacher that its own run has used, as students see them.
_OF_ITS_OWN_RUN = {
  "weights": "",
  "weights_part": "",
  "new_head": False,
  "finetune_epochs": 0,
  "finetune_learning_rate": 0.0,
}

# (name of a variant, learning rate if there are several) -> a folder for each seed.
Runs = Mapping[tuple[str, float | None], list[pathlib.Path]]


def main(argv: list[str]) -> None:
  """Run all unfinished jobs and print the table."""
  if len(argv) > 1:
    raise ConfigError(f"unexpected argument {argv[1]!r}: every setting is a --flag")
  logging.set_verbosity(logging.WARNING)
  rates = [_rate(text) for text in _RATES.value]
  students = list(dict.fromkeys(["alone", *_METHODS.value]))
  if _AGAINST.value not in students:
    raise ConfigError(f"against={_AGAINST.value!r}: expected one of {', '.join(students)}")
  workdir, console = pathlib.Path(_WORKDIR.value), Console()
  planned = _planned(students, rates, workdir)
  sweep.run_all(
    [run for several in planned.values() for run in several],
    workers=_WORKERS.value,
    compiled=workdir / "compiled",
    console=console,
  )
  runs = {key: [run.folder for run in several] for key, several in planned.items()}
  if len(rates) > 1:
    searched = [name for name in students if _method(name) != "teacher"]
    chosen = {name: {rate: _validation(runs[name, rate]) for rate in rates} for name in searched}
    text = report.choice_table(chosen)
    panels = {f"rate {r:g}": {_label(name): chosen[name][r] for name in chosen} for r in rates}
    xlabel = "validation accuracy, %"
  else:
    tests, text = _compared(runs, workdir)
    panels, xlabel = {"": tests}, "test accuracy, %"
  console.print(text, soft_wrap=True, highlight=False)
  if _OUTPUT.value:
    command = commands.written_by("compare")
    report.write_atomically(pathlib.Path(_OUTPUT.value), f"Written by `{command}`.\n\n{text}\n")
  if _PLOT.value:
    _draw(pathlib.Path(_PLOT.value), panels, xlabel)
  if _REPORT.value:
    _write_reports(pathlib.Path(_REPORT.value), runs)
    console.print(f"reports: {_REPORT.value}", soft_wrap=True, highlight=False)


def _write_reports(page: pathlib.Path, runs: Runs) -> None:
  """Write the report of every run of a student, and the page that links them."""
  from jaxkd.experiment.student_report import reported_bundle, write_report_of_run

  made = {}
  for (name, rate), folders in runs.items():
    if _method(name) == "teacher":
      continue
    for folder in folders:
      alone = None if _method(name) == "alone" else folder.parent / _alone(rate)
      baseline = reported_bundle(alone) if alone is not None and alone.is_dir() else None
      path, found = write_report_of_run(folder, baseline)
      made[f"{folder.parent.name}, {folder.name}"] = path, found.tree
  report.write_index(page, made, f"Students of {pathlib.Path(_CONFIG.value).stem}")


def _alone(rate: float | None) -> str:
  """Return the folder's name of the student alone."""
  return "alone" if rate is None else f"alone,rate={rate:g}"


def _planned(
  students: list[str], rates: list[float], workdir: pathlib.Path
) -> dict[tuple[str, float | None], list[sweep.Job]]:
  """Return the runs of all seeds: of the students and of their teachers."""
  for name in students:
    _settings(name, rates[0] if rates else None)  # a wrong variant is reported before anything runs
  taught = [name for name in students if methods.is_taught(_method(name))]
  # Logits in a file are a teacher without a run.
  teachers = {n: _teacher(n) for n in taught if not _settings(n, None).teacher.logits}
  planned: dict[tuple[str, float | None], list[sweep.Job]] = {}
  for seed in range(_FIRST_SEED.value, _FIRST_SEED.value + _SEEDS.value):
    folder = workdir / f"seed{seed}"
    home = workdir / "seed0" if _ONE_TEACHER.value else folder
    for name in dict.fromkeys([*teachers.values(), *students]):
      teaches = _method(name) == "teacher"
      if teaches and seed and _ONE_TEACHER.value:
        continue
      for rate in rates if rates and not teaches else [None]:
        settings = _settings(name, rate)
        needs: tuple[pathlib.Path, ...] = ()
        settings.seed = seed
        if _method(name) not in ("teacher", "alone"):
          settings.baseline = False
        if name in teachers and not _comes_trained(settings.teacher):
          needs = (home / _label(teachers[name]),)
          settings.teacher.bundle = str(needs[0] / "bundles" / "teacher" / "teacher")
          settings.teacher.update(_OF_ITS_OWN_RUN)
        run = _label(name) if rate is None else f"{_label(name)},rate={rate:g}"
        planned.setdefault((name, rate), []).append(sweep.Job(settings, folder / run, needs))
  return planned


def _comes_trained(teacher: ConfigDict) -> bool:
  """Check whether students read the files of a teacher, and not the bundle of its own run."""
  return bool(teacher.stablehlo or (teacher.weights and not teacher.finetune_epochs))


def _compared(runs: Runs, workdir: pathlib.Path) -> tuple[report.Accuracies, str]:
  """Return the test accuracies of finished runs and their table; writes comparison.json."""
  tests: report.Accuracies = {}
  validations: report.Accuracies = {}
  for (name, _), folders in runs.items():
    for folder in folders:
      stages = experiment.read_summary(folder)["stages"]
      for table, scored in ((tests, stages), (validations, _validated(stages, folder))):
        found = report.run_accuracies(_label(name), scored, every_predictor=_EVERY_PREDICTOR.value)
        for row, accuracy in found.items():
          table.setdefault(row, []).append(accuracy)
  report.write_atomically(workdir / "comparison.json", json.dumps(tests, indent=2) + "\n")
  # The teacher of another seed was trained on these validation images.
  shown = {} if _ONE_TEACHER.value else validations
  return tests, report.comparison_table(tests, shown, against=_label(_AGAINST.value))


def _validation(folders: list[pathlib.Path]) -> list[float]:
  """Return the last validation accuracies of runs, of the reported predictor of each."""
  found: list[float] = []
  for folder in folders:
    stages = experiment.read_summary(folder)["stages"]
    validated = report.run_accuracies("", _validated(stages, folder))
    if not validated:
      raise ConfigError(f"rates are chosen by validation, of which the run in {folder} has none")
    found += validated.values()
  return found


def _validated(stages: dict, folder: pathlib.Path) -> dict:
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return report.validated_stages(stages, map(json.loads, lines))


def _draw(path: pathlib.Path, panels: Mapping[str, report.Accuracies], xlabel: str) -> None:
  """Draw means over seeds with their 95% intervals; a single seed has no interval."""
  bars: dict[str, list[report.Bar]] = {}
  for panel, accuracies in panels.items():
    bars[panel] = []
    for name, values in accuracies.items():
      percent = [100 * value for value in values]
      ends = report.mean_interval(percent)[:3] if len(percent) > 1 else percent * 3
      bars[panel].append(report.Bar(name, *ends))
  seeds = f"{_SEEDS.value} seeds, 95% intervals" if _SEEDS.value > 1 else "one seed"
  title = f"{pathlib.Path(_CONFIG.value).stem}, {seeds}"
  path.parent.mkdir(parents=True, exist_ok=True)
  report.draw_bars(path, bars, xlabel=xlabel, title=title, from_zero=False)


def _settings(name: str, rate: float | None) -> ConfigDict:
  """The config of "METHOD/field=value/...", checked, at another learning rate if one is given."""
  file, variant = _parts(name)
  settings = overrides.variant(_get_config(file or _CONFIG.value), variant, _SET.value)
  changed = {change.partition("=")[0] for change in (*_SET.value, *variant.split("/")[1:])}
  if rate is not None and _method(name) == "alone":
    settings.student.learning_rate = rate
  elif rate is not None and not changed & {"learning_rate", "method.learning_rate"}:
    settings.method.learning_rate = rate
  config.check_config(settings)
  return settings


@functools.cache
def _get_config(path: str) -> overrides.GetConfig:
  module = overrides.load_module(pathlib.Path(path))
  if not hasattr(module, "get_config"):
    raise ConfigError(f"{path} has no get_config")
  return module.get_config


def _rate(text: str) -> float:
  try:
    return float(text)
  except ValueError as error:
    raise ConfigError(f"rates: {text!r} is no number") from error


def _parts(name: str) -> tuple[str, str]:
  """Split a variant into its config file, if it names one, and the rest."""
  file, colon, variant = name.rpartition(".py:")
  return f"{file}.py" if colon else "", variant


def _method(name: str) -> str:
  return _parts(name)[1].split("/")[0]


def _teacher(name: str) -> str:
  """The teacher of a variant: of the same file, with the same changes to teachers."""
  file, variant = _parts(name)
  changes = [change for change in variant.split("/") if change.startswith("teacher.")]
  return "/".join([f"{file}:teacher" if file else "teacher", *changes])


def _label(name: str) -> str:
  """Return the name of a variant's folder and row."""
  file, variant = _parts(name)
  prefix = f"{pathlib.Path(file).name}:" if file else ""
  return prefix + variant.replace("/", ",")


def run(arguments: list[str]) -> int:
  """Run the command with these flags; return its exit status."""
  return commands.run_main(sys.modules[__name__], main, arguments)
