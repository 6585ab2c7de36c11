"""Check the accelerators of this machine: parity and property tests on one, the step on all.

    python experiments/studies/accelerator/accelerator_check.py [--batch_size 256] [--steps 100]

The tests are tests/test_golden.py and tests/losses, with matrix products at their highest precision
(by default a GPU rounds the factors of a float32 product to TF32, a TPU to bfloat16). What is timed
is the training step of knowledge distillation from a ResNet-32x4 to a ResNet-8x4 on 32x32 images,
mapped over all devices, in float32 at the default precision and in bfloat16. The share of the peak
is relative to the rate of matrix products of the same type in the same run. Each part runs in a
process of its own: one process at a time can use a TPU, and peak memory is counted per process.

Without an accelerator one line is printed, and the exit status is 0.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxkd import losses, methods, models
from jaxkd import networks as trees
from jaxkd.runtime import mapping
from jaxkd.train import create_state, training_step
from jaxkd.types import Batch

ROOT = pathlib.Path(__file__).resolve().parents[3]
TESTS = ("tests/test_golden.py", "tests/losses")
TEACHER, STUDENT = "resnet32x4", "resnet8x4"
TYPES = ("float32", "bfloat16")

_FIND = """
import jax, json
found = jax.devices()
print(json.dumps([found[0].platform, found[0].device_kind, len(found)]))
"""


class Found(NamedTuple):
  """The devices that jax chooses by default."""

  platform: str
  kind: str
  count: int


class Measured(NamedTuple):
  """The measured costs of a step on some devices.

  Attributes:
    dtype: type of the networks' computation.
    devices: number of devices that share the step.
    batch_size: images of one step on each device.
    images_per_second: of all devices together.
    compile_seconds: time of the first step minus that of the others.
    peak_bytes: peak memory of one device; None if the device does not report it.
    flops: FLOPs of one step on one device, as XLA counts the program before optimisation.
    flops_per_second: rate of one device.
    matmul_flops_per_second: rate of one device in matrix products.
  """

  dtype: str
  devices: int
  batch_size: int
  images_per_second: float
  compile_seconds: float
  peak_bytes: int | None
  flops: float
  flops_per_second: float
  matmul_flops_per_second: float


def main() -> int:
  """Check the devices and print the results; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--batch_size", type=int, default=256, help="images for each device")
  parser.add_argument("--steps", type=int, default=100, help="that are timed")
  parser.add_argument("--measure", choices=TYPES, help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.measure:
    options = {
      "num_classes": 100,
      "axis_name": mapping.AXIS_NAME,
      "dtype": jnp.dtype(given.measure),
    }
    teacher, student = (models.create(name, **options) for name in (TEACHER, STUDENT))
    measured = measure(
      teacher,
      student,
      jax.devices(),
      image_shape=(32, 32, 3),
      batch_size=given.batch_size,
      steps=given.steps,
      dtype=given.measure,
    )
    print(json.dumps(measured._asdict()))
    return 0

  found = find()
  if found.platform == "cpu":
    print("no accelerator: jax finds nothing but the CPU here, so nothing was checked")
    return 0
  print(f"{found.count} x {found.kind} ({found.platform}), jax {jax.__version__}", flush=True)
  status = subprocess.run(
    pytest_command(found), cwd=ROOT, env=_environment(tests=True), check=False
  ).returncode
  rows = []
  for dtype in TYPES:
    command = [sys.executable, __file__, f"--measure={dtype}"]
    command += [f"--batch_size={given.batch_size}", f"--steps={given.steps}"]
    done = subprocess.run(
      command, cwd=ROOT, env=_environment(), stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
      print(f"the step in {dtype} failed", flush=True)
      status = status or done.returncode
    else:
      rows.append(Measured(**json.loads(done.stdout.splitlines()[-1])))
  print(table(rows))
  return status


def find() -> Found:
  """Return the devices of jax, found by a child process, which frees a TPU at its end."""
  done = subprocess.run(
    [sys.executable, "-c", _FIND], env=_environment(), stdout=subprocess.PIPE, text=True, check=True
  )
  return Found(*json.loads(done.stdout.splitlines()[-1]))


def pytest_command(found: Found) -> list[str]:
  """Return the command of the tests for these devices."""
  left_out = []
  if found.count < 8:
    left_out.append("devices")  # These tests share a batch among eight devices.
  if found.platform == "tpu":
    left_out.append("float64")  # A TPU emulates float64 with fewer bits.
  command = [sys.executable, "-m", "pytest", *TESTS, "--float32"]
  return [*command, "-k", " and ".join(f"not {name}" for name in left_out)] if left_out else command


def _environment(*, tests: bool = False) -> dict[str, str]:
  """Return this process's environment without variables that hide accelerators from jax."""
  environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
  environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.getenv("PYTHONPATH")]))
  if tests:
    environment |= {"JAXKD_TESTS_ON": "accelerator", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
  return environment


def measure(
  teacher: Any,
  student: Any,
  chosen: Sequence[jax.Device],
  *,
  image_shape: tuple[int, int, int],
  batch_size: int,
  steps: int,
  dtype: str,
  matmul_size: int = 8192,
) -> Measured:
  """Time the step of knowledge distillation over some devices, on noise that they already hold.

  Args:
    teacher: a model whose batch statistics, if shared, are shared over `mapping.AXIS_NAME`.
    student: likewise.
    chosen: the devices.
    image_shape: height, width, channels.
    batch_size: images of one step on each device.
    steps: number of timed steps.
    dtype: type of the models' computation, and of the matrix products for comparison.
    matmul_size: rows and columns of those products.
  """
  kd = methods.Distillation("kd", methods.per_example(losses.knowledge_distillation), 0.9)
  scheme = methods.offline(student, {"teacher": teacher}, [kd], label_weight=0.1)
  optimizer = optax.sgd(0.05, momentum=0.9)
  step = training_step(scheme, optimizer, lambda keys, batch: batch, axis_name=mapping.AXIS_NAME)
  batch = _noise(image_shape, batch_size * len(chosen))
  # A step takes the same time with random weights of the teacher.
  state = create_state(scheme, optimizer, jax.random.key(0), batch, untrained=("teacher",))
  flops = count_flops(step, state, _noise(image_shape, batch_size))

  frozen = trees.frozen(state.participants, scheme.learners)
  mapped = mapping.map_training_step(step, chosen, frozen=frozen)
  state, batch = mapping.replicate(state, chosen), _placed(mapping.shard(batch, chosen), chosen)
  first, state = _seconds(mapped, state, batch, 1)
  _, state = _seconds(mapped, state, batch, min(steps, 5))
  whole, state = _seconds(mapped, state, batch, steps)
  # Before the matrix products allocate memory.
  peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in chosen]
  return Measured(
    dtype=dtype,
    devices=len(chosen),
    batch_size=batch_size,
    images_per_second=steps * batch_size * len(chosen) / whole,
    compile_seconds=first - whole / steps,
    peak_bytes=None if None in peaks else max(peaks),
    flops=flops,
    flops_per_second=steps * flops / whole,
    matmul_flops_per_second=matmul_rate(chosen[0], dtype, matmul_size),
  )


def count_flops(step: Callable[[Any, Any], Any], state: Any, batch: Batch) -> float:
  """Return the FLOPs of a step of one device, counted on the CPU, as not all platforms do."""
  [host, *_] = jax.local_devices(backend="cpu")
  mapped = jax.pmap(
    step, axis_name=mapping.AXIS_NAME, in_axes=(None, 0), out_axes=None, devices=[host]
  )
  shapes = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (state, mapping.shard(batch, [host]))
  )
  return mapped.lower(*shapes).cost_analysis()["flops"]


def matmul_rate(device: jax.Device, dtype: str, size: int, *, repeats: int = 10) -> float:
  """Return the FLOP/s of the best of several rows of matrix products, at default precision."""
  factor = jax.device_put(jnp.full((size, size), 1 / size, dtype), device)
  multiply = jax.jit(lambda x: lax.fori_loop(0, repeats, lambda _, y: x @ y, x))
  jax.block_until_ready(multiply(factor))
  times = []
  for _ in range(5):
    start = time.perf_counter()
    jax.block_until_ready(multiply(factor))
    times.append(time.perf_counter() - start)
  return 2 * size**3 * repeats / min(times)


def table(rows: Sequence[Measured]) -> str:
  """Return the measurements as a Markdown table."""
  lines = [
    "| type | devices | images each | images/s | compiling, s | peak memory, GiB "
    "| TFLOP/s of a device | matrix products, TFLOP/s | share of it |",
    "|---" * 9 + "|",
  ]
  for row in rows:
    memory = "unknown" if row.peak_bytes is None else f"{row.peak_bytes / 2**30:.2f}"
    share = row.flops_per_second / row.matmul_flops_per_second
    lines.append(
      f"| {row.dtype} | {row.devices} | {row.batch_size} | {row.images_per_second:.0f} "
      f"| {row.compile_seconds:.1f} | {memory} | {row.flops_per_second / 1e12:.3g} "
      f"| {row.matmul_flops_per_second / 1e12:.3g} | {share:.1%} |"
    )
  return "\n".join(lines)


def _noise(image_shape: tuple[int, int, int], count: int) -> Batch:
  rng = np.random.default_rng(0)
  return Batch(
    inputs=rng.normal(size=(count, *image_shape)).astype(np.float32),
    labels=rng.integers(0, 2, count).astype(np.int32),
    weights=np.ones(count, np.float32),
    indices=np.arange(count, dtype=np.int32),
  )


def _placed(batch: Any, chosen: Sequence[jax.Device]) -> Any:
  """Put each device's share on the device."""
  mesh = jax.sharding.Mesh(np.asarray(chosen), (mapping.AXIS_NAME,))
  split = jax.sharding.PartitionSpec(mapping.AXIS_NAME)
  return jax.device_put(batch, jax.sharding.NamedSharding(mesh, split))


def _seconds(
  step: Callable[[Any, Any], Any], state: Any, batch: Any, count: int
) -> tuple[float, Any]:
  """Return the time of some steps, and the state after them."""
  in_flight = mapping.StepsInFlight()
  start = time.perf_counter()
  for _ in range(count):
    state, metrics = step(state, batch)
    in_flight.push(metrics)
  in_flight.drain()
  return time.perf_counter() - start, state


if __name__ == "__main__":
  sys.exit(main())
