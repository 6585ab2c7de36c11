"""Count the files and functions that run before the first update of a training run.

    python tests/reading_path.py [--root CHECKOUT]

Runs `experiments/train.py --config configs/digits.py:simkd --workdir X` in a subprocess under a
profiler, up to the return of the first dispatch of a training step, and prints every file of
jaxkd/, experiments/ and configs/ of which a function was called, with the number of its functions,
in order of the first call, and the totals.

A function is a code object that a `def` made, in whichever thread it was called and however often.
Bodies of modules and classes, lambdas and comprehensions do not count, nor do functions that are
called while a module is imported: decorators, registrations. Where the digits are not prepared yet,
the functions that prepare them count, too.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import threading
from types import CodeType, FrameType

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPT = "experiments/train.py"
CONFIG = "configs/digits.py:simkd"
FOLDERS = ("jaxkd", "experiments", "configs")
# The function of the project whose first return ends the count.
LAST = "Dispatch.next"


def reading_path(root: pathlib.Path = ROOT) -> dict[str, list[str]]:
  """File -> qualified names of its functions, both in order of the first call.

  Args:
    root: the checkout to measure. Nothing is written there.

  Raises:
    RuntimeError: if the run ends before the first dispatch returns, with its last output.
  """
  with tempfile.TemporaryDirectory() as folder:
    found = pathlib.Path(folder, "found.json")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    environment |= {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compile fast
      "XDG_CACHE_HOME": str(pathlib.Path(folder, "cache")),  # an empty cache of programs
      "PYTHONDONTWRITEBYTECODE": "1",
      "PYTHONPATH": str(root),
    }
    arguments = ["--trace", found, "--root", root, "--workdir", pathlib.Path(folder, "run")]
    done = subprocess.run(
      [sys.executable, __file__, *map(str, arguments)],
      cwd=root,
      env=environment,
      capture_output=True,
      text=True,
      check=False,
    )
    if not found.exists():
      raise RuntimeError(
        f"the run exited with {done.returncode} before {LAST} returned: "
        f"{done.stdout[-1000:]}{done.stderr[-1000:]}"
      )
    return json.loads(found.read_text())


def report(path: dict[str, list[str]]) -> str:
  """Return one line per file, and the totals."""
  lines = [f"{len(functions):4}  {file}" for file, functions in path.items()]
  return "\n".join([*lines, f"{sum(map(len, path.values()))} functions in {len(path)} files"])


def _trace(root: pathlib.Path, found: pathlib.Path, workdir: str) -> None:
  """Run the training script under the profiler; the process ends where the count does."""
  # Config files are loaded by the relative name that the flag gives.
  prefixes = tuple(
    f"{top}{folder}{os.sep}" for top in (f"{root}{os.sep}", "") for folder in FOLDERS
  )
  calls: dict[CodeType, None] = {}

  def profile(frame: FrameType, event: str, _: object) -> None:
    code = frame.f_code
    if event == "call" and code not in calls and _is_counted(frame, prefixes):
      calls[code] = None
    elif event == "return" and code in calls and code.co_qualname == LAST:
      sys.setprofile(None)
      path: dict[str, list[str]] = {}
      for called in list(calls):
        file = (root / called.co_filename).relative_to(root).as_posix()
        path.setdefault(file, []).append(called.co_qualname)
      found.write_text(json.dumps(path))
      os._exit(0)

  sys.path[0] = str(root)
  sys.argv = [SCRIPT, f"--config={CONFIG}", f"--workdir={workdir}"]
  threading.setprofile(profile)
  sys.setprofile(profile)
  runpy.run_path(str(root / SCRIPT), run_name="__main__")


def _is_counted(frame: FrameType, prefixes: tuple[str, ...]) -> bool:
  code = frame.f_code
  if not code.co_filename.startswith(prefixes):
    return False
  # Module and class bodies have no optimised locals; names of lambdas and comprehensions begin
  # with "<".
  if not code.co_flags & inspect.CO_OPTIMIZED or code.co_name.startswith("<"):
    return False
  return not _is_importing(frame, prefixes)


def _is_importing(frame: FrameType | None, prefixes: tuple[str, ...]) -> bool:
  """Check whether a module body of the project, other than the script's own, is on the stack."""
  while frame is not None:
    code = frame.f_code
    if code.co_name == "<module>" and code.co_filename.startswith(prefixes):
      return frame.f_globals.get("__name__") != "__main__"
    frame = frame.f_back
  return False


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--root", type=pathlib.Path, default=ROOT, help="the checkout to measure")
  parser.add_argument("--trace", type=pathlib.Path, help=argparse.SUPPRESS)
  parser.add_argument("--workdir", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.trace:
    _trace(options.root.resolve(), options.trace, options.workdir)
  else:
    print(report(reading_path(options.root.resolve())))
