"""Test the papers' claims on real data: every row is a difference with its interval and a verdict.

    python experiments/studies/claims/claims.py --workdir runs/claims

Trains every run of config.py that is not finished, spread over the machine's cores or devices, and
writes claims*.md, claims.json and claims_*.png to --output. The same command resumes. With --search
it trains the candidates of every hyperparameter instead, and writes their validation accuracies to
claims_search.md and .json, for the choice; with --why the runs that look into contradicted claims,
to claims_why.md. With --quick every run takes seconds, which shows that it works and nothing else.

A row holds if its whole 95% interval lies above 0, is contradicted if it lies below, and is not
shown otherwise.
"""

import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any

from jaxkd.errors import needed_by_script

with needed_by_script("experiments/studies/claims/claims.py"):
  from absl import app, flags, logging
  from reproduction import exits, large_and_tiny, offline, planning, plots, search, tables, together
  from reproduction.results import Runs, summary
  from rich.console import Console

  from jaxkd import report
  from jaxkd.errors import ConfigError, DiskError, one_line
  from jaxkd.experiment import overrides, sweep
  from jaxkd.runtime import compilation, fast_compilation

_CONFIG = flags.DEFINE_string(
  "config", "experiments/studies/claims/config.py", "Settings, runs and hyperparameters."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs go.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the results; default the workdir.")
_SEARCH = flags.DEFINE_bool("search", False, "Train the candidates of hyperparameters instead.")
_WHY = flags.DEFINE_bool("why", False, "Train the runs about contradicted claims instead.")
_QUICK = flags.DEFINE_bool("quick", False, "Few short runs, which show nothing of the claims.")
_WORKERS = flags.DEFINE_integer("workers", 0, "Runs at a time; 0 is one per core or device.")
flags.mark_flag_as_required("workdir")

CLAIMS = (*offline.CLAIMS, *together.CLAIMS, *exits.CLAIMS, *large_and_tiny.CLAIMS)


def main(argv: list[str]) -> None:
  """Train the missing runs and write the results."""
  if len(argv) > 1:
    raise ConfigError(f"unexpected argument {argv[1]!r}: every setting is a --flag")
  logging.set_verbosity(logging.WARNING)
  config: Any = overrides.load_module(pathlib.Path(_CONFIG.value))
  workdir, console = pathlib.Path(_WORKDIR.value), Console()
  output = pathlib.Path(_OUTPUT.value or workdir)
  command = f"python experiments/studies/claims/claims.py {' '.join(sys.argv[1:])}"
  if _SEARCH.value:
    candidates, planned = planning.candidates(config, workdir)
    make(planned, workdir, console)
    tried = search.validated(candidates)
    text = search.as_markdown(tried)
    console.print(text, soft_wrap=True, highlight=False, markup=False)
    report.write_atomically(output / "claims_search.json", search.as_json(tried))
    report.write_atomically(output / "claims_search.md", f"Written by `{command}`.\n\n{text}\n")
    return
  if _WHY.value:
    asked, planned = planning.questions(config, workdir)
    make(planned, workdir, console)
    text = search.every_predictor(asked)
    console.print(text, soft_wrap=True, highlight=False, markup=False)
    report.write_atomically(output / "claims_why.md", f"Written by `{command}`.\n\n{text}\n")
    return
  if _QUICK.value:
    fast_compilation.compile_fast()
  runs, planned = planning.claimed(config, workdir, quick=_QUICK.value)
  make(planned, workdir, console)
  compilation.enable_compilation_cache_in(workdir / "compiled")
  results = [(claim, claim.rows(runs)) for claim in CLAIMS]
  overview, text = tables.overview(results), tables.as_markdown(results, runs, facts(runs, planned))
  console.print(f"{text}\n\n{overview}", soft_wrap=True, highlight=False, markup=False)
  report.write_atomically(
    output / "claims.json", json.dumps(tables.as_json(results), indent=2) + "\n"
  )
  report.write_atomically(output / "claims.md", f"Written by `{command}`.\n\n{text}\n")
  report.write_atomically(output / "claims_overview.md", f"Written by `{command}`.\n\n{overview}\n")
  plots.draw_all(output, results, runs)


def make(planned: Sequence[sweep.Job], workdir: pathlib.Path, console: Console) -> None:
  """Train the missing runs, and record the time."""
  started = time.time()
  try:
    sweep.run_all(planned, workers=_WORKERS.value, compiled=workdir / "compiled", console=console)
  finally:
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "durations.jsonl").open("a") as file:
      aside = _SEARCH.value or _WHY.value
      file.write(json.dumps({"search": aside, "seconds": time.time() - started}) + "\n")


def facts(runs: Runs, planned: Sequence[sweep.Job]) -> dict[str, str]:
  """Return the facts of the runs: number, time, machine, versions."""
  lines = (runs.workdir / "durations.jsonl").read_text().splitlines()
  taken = [one["seconds"] for one in map(json.loads, lines) if not one["search"]]
  each = sum(summary(run.folder)["seconds"] for run in planned)
  about = summary(planned[0].folder)
  used = about["devices"]
  versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
  described = {setting: _described(runs, setting) for setting in runs.seeds}
  return {
    **described,
    "training": f"{len(planned)} runs, {each / 60:.0f} minutes one after the other, made in "
    f"{sum(taken) / 60:.0f} minutes",
    "machine": f"{os.cpu_count()} cores, {platform.machine()}, {used['platform']} ({used['kind']})",
    "versions": versions,
  }


def _described(runs: Runs, setting: str) -> str:
  """Describe the data, the students and the teacher of a setting."""
  of = runs.settings(setting, "alone")
  words = [
    f"{of.data.name}, {of.data.per_class} labels per class, {len(runs.seeds[setting])} seeds",
    f"students are {of.student.model}, {of.student.epochs} epochs",
  ]
  if setting == next(iter(runs.seeds)):
    images = f"{of.teacher.epochs} epochs of {of.data.teacher_per_class} images per class"
    words.append(f"the teacher of all seeds is a {of.teacher.model}, {images}")
  return "; ".join(words)


if __name__ == "__main__":
  try:
    app.run(main)
  except (ConfigError, DiskError) as error:
    sys.exit(f"error: {one_line(error)}")
