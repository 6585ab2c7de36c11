"""Short runs of the real script on the digits, and their comparison bit by bit."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
from orbax import checkpoint as ocp

from jaxkd.export.bundles import load_bundle
from jaxkd.runtime.fast_compilation import fast_flags

ROOT = pathlib.Path(__file__).parents[2]
SMALL = [
  "--config.batch_size=32",
  "--config.cpu_devices=1",
  "--config.checkpoint_seconds=0",
  "--config.data.per_class=8",
  "--config.data.teacher_per_class=16",
  "--config.teacher.model=resnet8_w4",
  "--config.teacher.epochs=1",
  "--config.student.model=mlp",
  "--config.student.epochs=2",
]
# Runs are short: most of their time is compilation.
XLA_FLAGS = fast_flags()


def start(workdir: pathlib.Path, *flags: str, method: str = "kd", home=None) -> subprocess.Popen:
  """Start the script; data and compiled programs are in `home`, by default beside `workdir`."""
  home = home or workdir.parent / "home"
  command = [sys.executable, "experiments/train.py", f"--config=configs/digits.py:{method}"]
  command += [f"--workdir={workdir}", f"--config.data.directory={home}/tfds", *SMALL, *flags]
  environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "TFDS_"))}
  environment |= {"XLA_FLAGS": XLA_FLAGS, "XDG_CACHE_HOME": str(home), "PYTHONPATH": str(ROOT)}
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
  return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def alone(workdir: pathlib.Path, home: pathlib.Path, *flags: str) -> subprocess.CompletedProcess:
  """Run the shortest experiment to its end: one student, trained on labels."""
  small = "--config.student.model=resnet8_w4"
  process = start(workdir, small, *flags, method="alone", home=home)
  with ended_after(process):
    outputs = process.communicate(timeout=900)
  return subprocess.CompletedProcess(process.args, process.returncode, *outputs)


def start_two(workdir: pathlib.Path, *flags: str, **options) -> list[subprocess.Popen]:
  """Start one run by two processes on this machine."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  shared = [*flags, f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
  return [start(workdir, *shared, f"--process_id={i}", **options) for i in (0, 1)]


def finish(*runs: subprocess.Popen) -> list[str]:
  """Wait for runs that must succeed; return their outputs."""
  outputs = [run.communicate(timeout=900) for run in runs]
  assert not any(run.returncode for run in runs), outputs
  return [out for out, _ in outputs]


@contextlib.contextmanager
def ended_after(*runs: subprocess.Popen):
  """Kill the processes at the end of the block."""
  try:
    yield
  finally:
    for run in runs:
      run.kill()
      run.wait()
      for pipe in (run.stdout, run.stderr):
        pipe.close()


def assert_same_bits(one: pathlib.Path, other: pathlib.Path) -> None:
  """Compare summaries without times, histories, bundles, and the last checkpoints."""
  times = {"seconds": None, "compile_seconds": None}
  first, second = ({**json.loads((w / "summary.json").read_text()), **times} for w in (one, other))
  for summary in (first, second):
    summary["config"]["data"]["directory"] = None
  assert first == second
  assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
  bundles = _folders(one, "bundles/*/*")
  assert bundles and bundles == _folders(other, "bundles/*/*")
  for bundle in bundles:
    _same(*(load_bundle(w / bundle)[0].variables for w in (one, other)))
  stages = _folders(one, "checkpoints/*")
  assert stages and stages == _folders(other, "checkpoints/*")
  for stage in stages:
    _same(*(_last_checkpoint(w / stage) for w in (one, other)))


def _folders(workdir: pathlib.Path, pattern: str) -> list[str]:
  return sorted(str(path.relative_to(workdir)) for path in workdir.glob(pattern))


def _last_checkpoint(directory: pathlib.Path):
  with ocp.CheckpointManager(directory) as manager:
    step = manager.latest_step()
    kinds = {"state": ocp.args.StandardRestore(), "best": ocp.args.StandardRestore()}
    kinds |= {"progress": ocp.args.JsonRestore(), "data": ocp.args.JsonRestore()}
    items = manager.restore(step, args=ocp.args.Composite(**kinds))
    return step, {name: items[name] for name in kinds}


def _same(one, other) -> None:
  (leaves, structure), (others, other_structure) = map(jax.tree.flatten, (one, other))
  assert leaves and structure == other_structure
  for a, b in zip(leaves, others, strict=True):
    if isinstance(a, str):
      assert a == b
    else:
      np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True)
