"""The real script on the digits, of one student alone: as short as a run can be."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = [
  "--config.batch_size=32",
  "--config.cpu_devices=1",
  "--config.checkpoint_seconds=0",
  "--config.evaluate_every=1",
  "--config.data.per_class=8",
  "--config.student.model=resnet8_w4",
  "--config.student.epochs=2",
]
# The compiler's time is what counts.
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def run(workdir, folder, *flags):
  """Runs the script to its end; data and compiled programs are kept in `folder`."""
  environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "TFDS_"))}
  environment |= {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": XLA_FLAGS,
    "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "PYTHONPATH": str(ROOT),
  }
  command = [sys.executable, "experiments/train.py", "--config", "configs/digits.py:alone"]
  command += ["--workdir", str(workdir), f"--config.data.directory={folder / 'tfds'}"]
  return subprocess.run(
    [*command, *SETTINGS, *flags],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=280,
  )


def results(workdir):
  """All that a run ends in and that is to be the same whatever befell it."""
  summary = json.loads((workdir / "summary.json").read_text())
  del summary["seconds"], summary["compile_seconds"], summary["config"]["data"]["directory"]
  bundle = workdir / "bundles" / "alone" / "student"
  return (
    summary,
    (workdir / "metrics.jsonl").read_bytes(),
    (bundle / "weights.safetensors").read_bytes(),
    (bundle / "model.json").read_bytes(),
  )
