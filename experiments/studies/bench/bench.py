"""Measure ratios of our times to others', side by side: `make bench`.

    python experiments/studies/bench/bench.py --output bench.json

Every section runs in a process of its own and prints its rows as JSON lines. The file holds, under
each section's name, one number per section (the worst of its rows; "losses" has all rows), the rows
under "details", and the versions and the machine. --sections measures some sections again; the file
keeps the others, with their versions and machine.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from jaxkd.errors import needed_by_script

with needed_by_script("experiments/studies/bench/bench.py"):
  from absl import app, flags, logging
  from benchmarks import machine, record

  from jaxkd.errors import ConfigError
  from jaxkd.report import write_atomically
  from jaxkd.runtime import devices, memory

_SECTIONS = flags.DEFINE_list("sections", None, "Sections to measure; default all.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file of the results.")
_ROUNDS = flags.DEFINE_integer("rounds", 100, "Rounds of steps, at most.", lower_bound=1)
_SECONDS = flags.DEFINE_float(
  "seconds", 10.0, "Approximate time of the rounds of each row.", lower_bound=0.0
)
_RUNS = flags.DEFINE_integer("runs", 3, "Whole runs of each kind.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 20, "Epochs of each whole run.", lower_bound=1)
_ONLY = flags.DEFINE_list("only", None, "Rows to measure, in sections with a choice of rows.")
_PART = flags.DEFINE_string("part", None, "For internal use: measure this section, here.")


def main(argv: list[str]) -> None:
  """Measure the sections that the flags name."""
  del argv
  logging.set_verbosity(logging.WARNING)
  if _PART.value:
    _measure_here(_PART.value, pathlib.Path(_OUTPUT.value))
    return
  sections = _SECTIONS.value or list(SECTIONS)
  unknown = [name for name in sections if name not in SECTIONS]
  if unknown:
    raise ConfigError(f"--sections={unknown[0]}: expected some of {', '.join(SECTIONS)}")
  load, _, _ = os.getloadavg()
  if load > 0.5:
    # PyTorch's threads synchronise at every operation, and each needs a core.
    print(f"the machine is not idle (load {load:.1f}): the figures will be noise", file=sys.stderr)
  output = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else None
  results = json.loads(output.read_text()) if output and output.exists() else {}
  with tempfile.TemporaryDirectory(prefix="jaxkd-bench-") as folder:
    for name in sections:
      part = _measured_apart(name, pathlib.Path(folder))
      results = record.merged(results, name, part)
      if output:
        write_atomically(output, json.dumps(results, indent=2) + "\n")
  for name in sections:
    shown = f"{len(results[name])} rows" if name == "losses" else results[name]
    print(f"{name}: {shown}")


def _losses() -> dict[str, Any]:
  from benchmarks import losses

  return losses.measure(_ONLY.value or tuple(losses.loss_cases.CASES))


def _steps(module: str) -> dict[str, Any]:
  options: dict[str, Any] = {"rounds": _ROUNDS.value, "seconds": _SECONDS.value}
  if module == "against_pytorch":
    from benchmarks.against_pytorch import measure
  else:
    from benchmarks.handwritten import measure
  if _ONLY.value:
    options["names"] = _ONLY.value
  return measure(**options)


def _whole_runs() -> dict[str, Any]:
  from benchmarks import whole_runs

  variants = {n: v for n, v in whole_runs.VARIANTS.items() if not _ONLY.value or n in _ONLY.value}
  return whole_runs.measure(variants, rounds=_RUNS.value, epochs=_EPOCHS.value)


def _cohorts() -> dict[str, Any]:
  from benchmarks import cohort

  settings = {m: s for m, s in cohort.SETTINGS.items() if not _ONLY.value or m in _ONLY.value}
  return cohort.measure(settings, rounds=_ROUNDS.value, seconds=_SECONDS.value)


def _flops() -> dict[str, Any]:
  from benchmarks import flops

  return flops.measure(_ONLY.value or tuple(flops.PAIRS))


# Section -> function that measures it.
SECTIONS: dict[str, Callable[[], dict[str, Any]]] = {
  "losses": _losses,
  "step_over_handwritten": functools.partial(_steps, "handwritten"),
  "step_over_pytorch": functools.partial(_steps, "against_pytorch"),
  "run_over_pytorch": _whole_runs,
  "cohort_over_parts": _cohorts,
  "flops_over_minimum": _flops,
}
# Sections that run on one device with all cores.
_UNDIVIDED = ("losses",)


def _measured_apart(name: str, folder: pathlib.Path) -> dict[str, Any]:
  """Measure a section in another process, as XLA's devices are fixed within one."""
  result = folder / f"{name}.json"
  shared = [f"--{f.name}={f.value}" for f in (_ROUNDS, _SECONDS, _RUNS, _EPOCHS)]
  shared += [f"--only={','.join(_ONLY.value)}"] if _ONLY.value else []
  # The sections compile some of the same steps.
  environment = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), **os.environ}
  command = [sys.executable, __file__, f"--part={name}", f"--output={result}", *shared]
  subprocess.run(command, check=True, env=environment)
  return json.loads(result.read_text())


def _measure_here(name: str, result: pathlib.Path) -> None:
  memory.tune_malloc()
  if name not in _UNDIVIDED:
    devices.set_cpu_devices(0, 64)
  started = time.perf_counter()
  taken_on = machine.machine()
  with needed_by_script("experiments/studies/bench/bench.py", extra="bench"):
    found = SECTIONS[name]()
  for row, figures in (found["losses"] if name == "losses" else found).items():
    print(json.dumps({"section": name, "row": row, **figures}), flush=True)
  part = {"found": found, "seconds": round(time.perf_counter() - started, 1)}
  part |= {"versions": machine.versions(), "machine": taken_on}
  write_atomically(result, json.dumps(part))


if __name__ == "__main__":
  app.run(main)
