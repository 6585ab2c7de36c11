"""The losses that `make bench` times, and its measurement of memory; without PyTorch."""

from __future__ import annotations

import ast
import importlib
import pathlib
import sys

import jax
import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "experiments/studies/bench/benchmarks"


@pytest.fixture(scope="module")
def modules():
  """The modules of experiments/studies/bench/benchmarks that need no PyTorch."""
  names = ("benchmarks", "benchmarks.loss_cases", "benchmarks.loss_memory")
  sys.path.insert(0, str(FOLDER.parent))
  try:
    yield [importlib.import_module(name) for name in names][1:]
  finally:
    sys.path.remove(str(FOLDER.parent))
    for name in names:
      sys.modules.pop(name, None)


def test_every_case_has_a_peer(modules):
  cases, _ = modules
  text = (FOLDER / "loss_peers.py").read_text()
  functions = {x.name for x in ast.parse(text).body if isinstance(x, ast.FunctionDef)}
  assert set(cases.CASES) <= functions


@pytest.mark.parametrize("name", ["kd", "ab"])
def test_case_returns_a_loss_and_the_gradient_of_every_array_of_the_student(modules, name):
  cases, _ = modules
  case = cases.CASES[name]
  students, teachers, labels = cases.arrays_of(case, 2)
  run = jax.jit(
    cases.value_and_gradient(case), compiler_options={"xla_backend_optimization_level": 0}
  )
  value, gradients = run(dict(students), dict(teachers), labels)
  assert value > 0
  assert {key: x.shape for key, x in gradients.items()} == {
    key: (2, *cases.SHAPES[key]) for key in case.names
  }
  assert all(np.abs(x).max() > 0 for x in gradients.values())


@pytest.mark.long
def test_memory_excludes_the_arguments_of_a_call(modules):
  _, memory = modules
  gradient = 64 * 16 * 16 * 128 * 4
  found = memory.rise("fitnets", 64, "ours")
  assert gradient <= found < 2.5 * gradient
