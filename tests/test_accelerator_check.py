"""The check of accelerators: its measurements, on the CPU, and its output without accelerator."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxkd.runtime import mapping
from tests.tiny import TinyNet

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def check():
  path = ROOT / "experiments/studies/accelerator/accelerator_check.py"
  spec = importlib.util.spec_from_file_location("accelerator_check", path)
  module = importlib.util.module_from_spec(spec)
  sys.modules["accelerator_check"] = module
  spec.loader.exec_module(module)
  return module


def test_step_over_several_devices_is_measured(check):
  teacher, student = (
    TinyNet(width, axis_name=mapping.AXIS_NAME, dtype=jnp.bfloat16) for width in (6, 4)
  )
  measured = check.measure(
    teacher,
    student,
    jax.devices()[:2],
    image_shape=(6, 6, 1),
    batch_size=8,
    steps=3,
    dtype="bfloat16",
    matmul_size=16,
  )
  assert (measured.devices, measured.batch_size, measured.dtype) == (2, 8, "bfloat16")
  # Both rates count the same three steps.
  seconds = 3 * 2 * 8 / measured.images_per_second
  assert measured.flops_per_second == pytest.approx(3 * measured.flops / seconds)
  assert measured.compile_seconds > 0, "the first step is compiled"
  assert measured.matmul_flops_per_second > 0
  assert measured.peak_bytes is None, "a CPU does not report it"
  assert "| unknown |" in check.table([measured])
  json.dumps(measured._asdict())


def test_flops_are_those_of_the_networks_and_grow_with_the_batch_size(check):
  def step(kernel, images):
    return jax.lax.pmean(jnp.sum(images @ kernel), mapping.AXIS_NAME)

  kernel = jnp.ones((32, 16))
  few, many = (check.count_flops(step, kernel, jnp.ones((n, 32))) for n in (8, 16))
  assert few == pytest.approx(2 * 8 * 32 * 16, rel=0.1)
  assert many == pytest.approx(2 * few, rel=0.05)


def test_table_has_a_row_for_each_type(check):
  row = check.Measured("float32", 8, 256, 1e6, 12.34, 3 * 2**30, 1e12, 2e14, 8e14)
  _, _, first, second = check.table([row, row._replace(dtype="bfloat16")]).splitlines()
  assert first == "| float32 | 8 | 256 | 1000000 | 12.3 | 3.00 | 200 | 800 | 25.0% |"
  assert second.startswith("| bfloat16 |")


@pytest.mark.parametrize(
  ("platform", "count", "chosen"),
  [("cuda", 8, []), ("cuda", 1, ["-k", "not devices"]), ("tpu", 8, ["-k", "not float64"])],
)
def test_tests_that_a_platform_cannot_run_are_left_out(check, platform, count, chosen):
  command = check.pytest_command(check.Found(platform, "a kind", count))
  assert command[-2:] == chosen if chosen else "-k" not in command
  assert set(check.TESTS) < set(command)


@pytest.mark.long
def test_without_accelerator_one_line_is_printed():
  done = subprocess.run(
    [sys.executable, "experiments/studies/accelerator/accelerator_check.py"],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "nonsense"},
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0
  assert done.stdout == (
    "no accelerator: jax finds nothing but the CPU here, so nothing was checked\n"
  )


@pytest.mark.long
def test_its_tests_pass_on_a_single_device(check):
  """A CPU takes the place of the accelerator."""
  command = check.pytest_command(check.Found("cuda", "a kind", 1))
  done = subprocess.run(
    command, cwd=ROOT, env=check._environment(tests=True), capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout[-4000:]
  assert "eight_devices" not in done.stdout
