"""The losses and adapters give the values and gradients of published code.

`pytest tests/test_golden.py [--golden DIR]`: every case of every .npz file in the folder is a
test, in float64 and in float32; without --golden or --float32, to save time, in float32 only the
first of a method, and from the second one on among the long tests. A method or case that cannot be
run is a failure.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.golden_adapters.every_adapter import ADAPTERS
from tests.golden_cases import Case, arrays_of, compute, disagreements, load

HERE = Path(__file__).parent / "golden"


def pytest_generate_tests(metafunc):
  if "golden_case" not in metafunc.fixturenames:
    return
  given = metafunc.config.getoption("--golden")
  folder = Path(given or HERE)
  cases = [case for path in sorted(folder.glob("*.npz")) for case in load(path)]
  if not cases:
    raise pytest.UsageError(f"no golden cases in {folder}")
  in_both = given or metafunc.config.getoption("--float32")
  chosen = [
    pytest.param(
      case, dtype, id=f"{case.method}-{case.index}-{dtype}", marks=() if given else _marks(case)
    )
    for case in cases
    for dtype in ("float64", "float32")
    if dtype == "float64" or in_both or case.index == 0
  ]
  metafunc.parametrize(("golden_case", "dtype"), chosen)


def _marks(case: Case) -> list[pytest.MarkDecorator]:
  # A case of netaug trains networks.
  return [pytest.mark.long] if case.index > 0 or case.method == "netaug" else []


def test_golden_case_agrees(golden_case, dtype):
  case = golden_case
  adapter = ADAPTERS.get(case.method)
  assert adapter is not None, f"no adapter for the method {case.method!r}: known {list(ADAPTERS)}"
  with jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext():
    ours = compute(case, adapter, dtype)
  wrong = disagreements(case, ours, dtype)
  assert not wrong, f"{case.word('desc')} [{case.word('source')}]: " + "; ".join(wrong)


@pytest.mark.long
def test_adapters_give_every_intermediate_value_of_our_own_files():
  for path in HERE.glob("*.npz"):
    for case in load(path):
      wanted = {name for name in case.values if name.startswith("aux_")}
      arrays = arrays_of(case, "float32")
      _, aux = jax.eval_shape(functools.partial(ADAPTERS[case.method], case, arrays))
      assert wanted <= set(aux)


CASE = Case(
  "kd",
  0,
  {
    "loss": np.array(2.0),
    "loss_f32": np.array(2.0),
    "grad_a": np.array([1.0, 3.0]),
    "grad_b": np.array([1e-17]),
    "edge": np.array(""),
    "nonfinite": np.array(""),
  },
)
OURS = {"loss": np.array(2.0), "grad_a": np.array([1.0, 3.0]), "grad_b": np.array([0.0])}


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("loss", np.array(2.0 + 1e-8)),
    ("loss", np.array(np.nan)),
    ("grad_a", np.array([1.0, 3.0 + 1e-8])),
    ("grad_a", np.array([1.0])),
    ("grad_b", np.array([1e-12])),
    ("grad_b", np.array([np.inf])),
  ],
)
def test_comparison_detects_a_wrong_value(name, value):
  assert not disagreements(CASE, OURS, "float64")
  assert len(disagreements(CASE, OURS | {name: value}, "float64")) == 1


def test_comparison_detects_a_missing_gradient():
  ours = {name: value for name, value in OURS.items() if name != "grad_a"}
  assert disagreements(CASE, ours, "float64") == ["grad_a: not computed"]


@pytest.mark.parametrize("attached", ["teacher_detached", "teacher_no_grad"])
def test_comparison_leaves_out_a_gradient_that_the_reference_lets_through_to_the_teacher(attached):
  ours = OURS | {"grad_teacher": np.array([0.0])}
  values = CASE.values | {"grad_teacher": np.array([2.0])}
  assert disagreements(CASE._replace(values=values | {attached: np.array(1)}), ours, "float64")
  assert not disagreements(CASE._replace(values=values | {attached: np.array(0)}), ours, "float64")


def test_comparison_requires_finite_values_where_the_reference_has_none():
  case = CASE._replace(values=CASE.values | {"loss": np.array(np.nan)})
  named = CASE._replace(values=CASE.values | {"nonfinite": np.array("loss, grad_a")})
  for reference in (case, named):
    assert not disagreements(reference, OURS | {"loss": np.array(7.0)}, "float64")
    assert disagreements(reference, OURS | {"loss": np.array(np.inf)}, "float64")
