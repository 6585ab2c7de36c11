"""Compares methods over several seeds: one table of means and standard deviations.

    python experiments/compare.py --config configs/digits.py --workdir runs/digits-compare

Each seed trains one teacher and one student alone; every method then distils that teacher into a
student that starts from the same weights as the student alone. Every run is resumable, so the
same command goes on where it stopped.
"""

import importlib.util
import json
import pathlib
import statistics
import sys
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import ConfigDict
from rich.console import Console

from jaxkd import experiment, recipes, report
from jaxkd.errors import ConfigError
from jaxkd.train import devices

_CONFIG = flags.DEFINE_string("config", None, "Config file, without a method.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs go.")
_METHODS = flags.DEFINE_list("methods", ["kd", "fitnets", "at", "simkd"], "Methods to compare.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "How many seeds, from 0.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "Also write the table to this Markdown file.")
flags.mark_flags_as_required(["config", "workdir"])

Accuracies = dict[str, list[float]]


def main(argv: list[str]) -> None:
  """Runs whatever is missing and prints the table."""
  del argv
  logging.set_verbosity(logging.WARNING)
  get_config = _load(pathlib.Path(_CONFIG.value))
  for method in _METHODS.value:
    recipes.check_config(get_config(method))
  devices.split_cpu(0, get_config("alone").batch_size)
  workdir, console = pathlib.Path(_WORKDIR.value), Console()
  accuracies: Accuracies = {}
  validations: Accuracies = {}
  for seed in range(_SEEDS.value):
    _run_seed(get_config, seed, workdir / f"seed{seed}", console, accuracies, validations)
  text = table(accuracies, validations)
  console.print(text, soft_wrap=True, highlight=False)
  report.write_atomically(workdir / "comparison.json", json.dumps(accuracies, indent=2) + "\n")
  if _OUTPUT.value:
    command = f"python experiments/compare.py {' '.join(sys.argv[1:])}"
    report.write_atomically(pathlib.Path(_OUTPUT.value), f"Written by `{command}`.\n\n{text}\n")


def _run_seed(
  get_config: Callable[[str], ConfigDict],
  seed: int,
  workdir: pathlib.Path,
  console: Console,
  accuracies: Accuracies,
  validations: Accuracies,
) -> None:
  """Trains or resumes one seed's runs, and appends what each network reached."""
  for method in ("teacher", "alone", *_METHODS.value):
    config = get_config(method)
    config.seed = seed
    if method not in ("teacher", "alone"):
      config.baseline = False
      config.teacher.bundle = str(workdir / "teacher" / "bundles" / "teacher" / "teacher")
    summary = experiment.run(config, workdir / method, console)
    stage = {"teacher": "teacher", "alone": "alone"}.get(method, "distilled")
    result = summary["stages"][stage]
    accuracies.setdefault(method, []).append(result["accuracy"])
    rows = (workdir / method / "metrics.jsonl").read_text().splitlines()
    last = json.loads(rows[-1]).get("validation")
    if last:
      validations.setdefault(method, []).append(last[result["predictor"]]["accuracy"])


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
    gains = [a - b for a, b in zip(values, accuracies["alone"], strict=True)]
    closed = f"{statistics.mean(gains) / gap:.0%}" if gap > 0 else "no gap"
    distilled = method not in ("teacher", "alone")
    cells = [
      {"alone": "student alone"}.get(method, method if not distilled else f"student, {method}"),
      _spread(values),
      _spread(gains, "+") if distilled else "",
      closed if distilled else "",
      _spread(validations[method]) if method in validations else "",
    ]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def _spread(values: list[float], sign: str = "") -> str:
  """Mean and sample standard deviation, in percent."""
  deviation = statistics.stdev(values) if len(values) > 1 else 0.0
  return f"{100 * statistics.mean(values):{sign}.2f} ± {100 * deviation:.2f}"


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
