"""Try full-scale configs without their data and accelerators.

    python experiments/studies/dry_run/dry_run.py --workdir runs/dry-run --output dry_run.md \
        --configs configs/cifar100.py,configs/imagenet.py

Every method of every teacher-student pair is built as in a run, and each of its training and
evaluation steps is lowered for TPU and CUDA at the config's own batch size, split over eight
devices. Then every stage makes two updates on noise, for the pairs in the config file's MAIN_PAIRS
(by default all). A teacher is tried once, as method "teacher"; methods without a teacher are tried
once per student. A config file's VARIANTS are tried for the pairs in MAIN_PAIRS, with the method
that they were published with. "kd" is also lowered in bfloat16 for every pair, and every method for
the first pair: no convolution may then compute in another type.

Each config's result is a line of WORKDIR/dry_run.jsonl; the same command resumes and repeats what
failed. Two commands with different --only can run at the same time.
"""

import collections
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from jaxkd.errors import needed_by_script

with needed_by_script("experiments/studies/dry_run/dry_run.py"):
  import jax
  from absl import app, flags, logging

  from jaxkd import methods, models, report
  from jaxkd.errors import ConfigError, DiskError, one_line
  from jaxkd.experiment import dry_run
  from jaxkd.experiment.overrides import load_module
  from jaxkd.types import Participants

_CONFIGS = flags.DEFINE_list("configs", None, "Config files that have PAIRS.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/dry-run", "Directory of the results.")
_OUTPUT = flags.DEFINE_string("output", None, "Also write the table to this Markdown file.")
_ONLY = flags.DEFINE_string("only", "", "Try what matches: FILE:METHOD@PAIR, with -bfloat16.")
_SKIP_STEPS = flags.DEFINE_bool("skip_steps", False, "Lower only.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 2, "Images of an update.", lower_bound=2)
flags.mark_flags_as_required(["configs"])

# Stages that are tried as methods of their own.
_ELSEWHERE = ("teacher", "alone")


@dataclasses.dataclass(frozen=True)
class Trial:
  """One config to try.

  Attributes:
    file: the config file.
    method: name of the method.
    pair: teacher-student pair, and "@VARIANT" for a variant; "" for the method's default networks.
    dtype: type of the computation.
    steps: make two updates of every stage, too.
  """

  file: pathlib.Path
  method: str
  pair: str
  dtype: str = "float32"
  steps: bool = False

  @property
  def name(self) -> str:
    """The name that `--only` matches."""
    at = f"@{self.pair}" if self.pair else ""
    return f"{self.file.stem}:{self.method}{at}{'' if self.dtype == 'float32' else '-bfloat16'}"


def main(argv: list[str]) -> None:
  """Try the missing configs and print the table."""
  del argv
  logging.set_verbosity(logging.WARNING)
  files = {pathlib.Path(name): load_module(pathlib.Path(name)) for name in _CONFIGS.value}
  trials = [trial for path, module in files.items() for trial in _trials(path, module)]
  chosen = [trial for trial in trials if re.search(_ONLY.value, trial.name)]
  workdir = pathlib.Path(_WORKDIR.value)
  workdir.mkdir(parents=True, exist_ok=True)
  kept = workdir / "dry_run.jsonl"
  results = _results(kept)
  teachers: dict[str, Participants] = {}
  for number, trial in enumerate(chosen, start=1):
    if _is_done(trial, results.get(trial.name)):
      continue
    result = _tried(trial, files[trial.file], teachers)
    with kept.open("a") as lines:
      # On a line of its own, even if the line before is incomplete.
      lines.write(f"\n{json.dumps(result)}\n")
    outcome = result["error"] or "passed"
    jax.clear_caches()  # a hundred megabytes per trial, never freed otherwise
    print(f"[{number}/{len(chosen)}] {trial.name}: {outcome} ({result['seconds']} s)", flush=True)
  results = _results(kept)
  text = _report(files, trials, results)
  print(f"\n{text}")
  if _OUTPUT.value:
    report.write_atomically(pathlib.Path(_OUTPUT.value), text)
  failed = [t.name for t in chosen if not _is_done(t, results.get(t.name))]
  if failed:
    sys.exit(f"error: {len(failed)} of {len(chosen)} failed: {', '.join(failed)}")


def _trials(path: pathlib.Path, module: Any) -> Iterator[Trial]:
  """Return the trials of a config file; networks shared between pairs are tried once."""
  seen: set[tuple[str, str]] = set()
  main_pairs = getattr(module, "MAIN_PAIRS", module.PAIRS)
  for pair in module.PAIRS:
    teacher, student = pair.split("-")
    for method in methods.METHODS:
      if not _trains(method, student):
        continue
      network = teacher if method == "teacher" else student if _is_teacherless(method) else pair
      steps = pair in main_pairs and not _SKIP_STEPS.value
      if (method, network) not in seen:
        yield Trial(path, method, pair, steps=steps)
      seen.add((method, network))
      if method == "kd" or (pair == module.PAIRS[0] and method not in _ELSEWHERE):
        yield Trial(path, method, pair, dtype="bfloat16")
  for variant, method in getattr(module, "VARIANTS", {}).items():
    for pair in main_pairs:
      yield Trial(path, method, f"{pair}@{variant}", steps=not _SKIP_STEPS.value)
  for method in methods.METHODS:
    # Methods whose default networks are not the first pair's.
    own, first = module.get_config(method), module.get_config(f"{method}@{module.PAIRS[0]}")
    if own.student.model != first.student.model:
      yield Trial(path, method, "", steps=not _SKIP_STEPS.value)


def _trains(method: str, student: str) -> bool:
  """Check whether a method trains networks of the student's class."""
  only = methods.METHODS[method].only
  return not only or type(models.create(student, num_classes=2)) in only


def _is_teacherless(method: str) -> bool:
  return method == "alone" or methods.METHODS[method].without_teacher


def _tried(trial: Trial, module: Any, teachers: dict[str, Participants]) -> dict[str, Any]:
  """Return the line of a trial; `teachers` caches trained teachers for later trials."""
  started = time.monotonic()
  result: dict[str, Any] = {"name": trial.name, "lowered": [], "ran": [], "error": ""}
  try:
    settings = module.get_config(f"{trial.method}@{trial.pair}" if trial.pair else trial.method)
    settings.compute_dtype = trial.dtype
    settings.baseline = False
    prepared = dry_run.prepare(settings)
    elsewhere = () if trial.method in (*_ELSEWHERE, "born_again") else _ELSEWHERE
    lowered = dry_run.lower(prepared, skip=elsewhere)
    result["lowered"] = [
      {"stage": x.phase, "step": x.step, "convolutions": dict(x.convolutions)} for x in lowered
    ]
    if trial.steps:
      finished = _teacher(trial, module, teachers) if "teacher" in elsewhere else {}
      ran = dry_run.dry_run(prepared, batch_size=_BATCH_SIZE.value, finished=finished)
      result["batch_size"] = _BATCH_SIZE.value
      result["ran"] = [{"stage": x.phase, "losses": x.losses} for x in ran]
      if trial.method == "teacher":
        teachers.clear()
        teachers[settings.teacher.model] = ran[0].participants
  except Exception as error:  # of any kind: the other configs are still tried
    result["error"] = f"{type(error).__name__}: {one_line(error)}"
  return {**result, "seconds": round(time.monotonic() - started, 1)}


def _teacher(
  trial: Trial, module: Any, teachers: dict[str, Participants]
) -> Mapping[str, Participants]:
  """Return a teacher after its updates, for a method that needs one."""
  if _is_teacherless(trial.method):
    return {}
  settings = module.get_config(f"teacher@{trial.pair}")
  if settings.teacher.model not in teachers:
    [ran] = dry_run.dry_run(dry_run.prepare(settings), batch_size=_BATCH_SIZE.value)
    teachers.clear()  # one is enough: trials are ordered by pair
    teachers[settings.teacher.model] = ran.participants
  return {"teacher": teachers[settings.teacher.model]}


def _results(file: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Return the last line of each trial; an incomplete line is ignored."""
  results = {}
  for line in file.read_text().splitlines() if file.exists() else []:
    try:
      result = json.loads(line)
    except ValueError:
      continue
    results[result["name"]] = result
  return results


def _is_done(trial: Trial, result: Mapping[str, Any] | None) -> bool:
  return bool(result and not result["error"] and (result["ran"] or not trial.steps))


def _report(
  files: Mapping[pathlib.Path, Any],
  trials: list[Trial],
  results: Mapping[str, Mapping[str, Any]],
) -> str:
  """Return the tables of pairs and methods, and the meaning of their marks."""
  found = [results[t.name] for t in trials if t.name in results]
  lowered = sum(len(r["lowered"]) for r in found)
  halves = [r for r in found if r["name"].endswith("-bfloat16") and not r["error"]]
  ran = [r for r in found if r["ran"] and not r["error"]]
  sizes = collections.Counter(r.get("batch_size", 2) for r in ran)
  images = " or ".join(f"{size} images ({count} configs)" for size, count in sorted(sizes.items()))
  versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "flax", "optax"))
  lines = [
    f"Written by `python experiments/studies/dry_run/dry_run.py {' '.join(sys.argv[1:])}` on a "
    f"machine with {os.cpu_count()} cores ({platform.machine()}, no accelerator) in "
    f"{sum(r['seconds'] for r in found) / 60:.0f} minutes; {versions}, Python "
    f"{platform.python_version()}.",
    "",
    f"{lowered} steps of {len(found)} configs were lowered for {' and '.join(dry_run.PLATFORMS)} "
    "at their own batch size over eight devices: every training and evaluation step of every "
    f"stage. {len(ran)} configs then made two updates of every stage on noise, on the CPU with "
    f"{images} at a time: losses and variables were finite, and all learners moved. "
    f"{len(halves)} configs were also lowered in bfloat16, and have no convolution in another "
    "type.",
    "",
    "**2** is lowered and two updates, **L** is lowered, **FAILED** is listed below, - is not "
    "tried yet, or for other students. Methods without a teacher are tried once for each student, "
    "a teacher once.",
  ]
  for path, module in files.items():
    lines += ["", f"## {path}", "", _table(path, module, results)]
    if extra := [t for t in trials if t.file == path and not t.pair]:
      marks = ", ".join(f"{t.name} {_mark(results.get(t.name))}" for t in extra)
      lines += ["", f"Without a pair: {marks}."]
    if variants := [t for t in trials if t.file == path and "@" in t.pair]:
      marks = ", ".join(f"{t.name} {_mark(results.get(t.name))}" for t in variants)
      lines += ["", f"Variants: {marks}."]
  failures = [f"- {r['name']}: {r['error']}" for r in found if r["error"]]
  return "\n".join([*lines, *(["", "## Failures", "", *failures] if failures else []), ""])


def _table(path: pathlib.Path, module: Any, results: Mapping[str, Mapping[str, Any]]) -> str:
  """Return a table with a row per pair and a column per method."""
  rows = [f"| teacher-student | {' | '.join(methods.METHODS)} |"]
  rows.append("|---" * (len(methods.METHODS) + 1) + "|")
  shared: dict[tuple[str, str], str] = {}
  for pair in module.PAIRS:
    teacher, student = pair.split("-")
    marks = []
    for method in methods.METHODS:
      network = teacher if method == "teacher" else student if _is_teacherless(method) else pair
      mine = _mark(results.get(Trial(path, method, pair).name))
      marks.append(shared.setdefault((method, network), mine))
    rows.append(f"| {pair} | {' | '.join(marks)} |")
  return "\n".join(rows)


def _mark(result: Mapping[str, Any] | None) -> str:
  if result is None:
    return "-"
  return "FAILED" if result["error"] else "2" if result["ran"] else "L"


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  try:
    app.run(main)
  except (ConfigError, DiskError) as error:
    sys.exit(f"error: {one_line(error)}")
