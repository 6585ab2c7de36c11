"""The examples of jaxkd in other code bases run, their loss falls, and they are short."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "experiments/examples"
# Examples with inputs other than images, which train through phases: tests/test_example_inputs.py.
OF_INPUTS = {"text_classification", "language_model", "segmentation"}
# A whole run.
BY_PATH = FOLDER / "model_by_path.py"
# Methods of one's own (*_method.py) are in tests/trials, data of one's own in test_own_data.py.
FILES = sorted(
  set(FOLDER.glob("*.py"))
  - {BY_PATH}
  - set(FOLDER.glob("*_method.py"))
  - {FOLDER / "one_call.py"}  # tests/test_distill.py
  - set(FOLDER.glob("own_*.py"))
  - {FOLDER / f"{name}.py" for name in OF_INPUTS}
  - {FOLDER / "multi_label.py"}  # in tests/test_multi_label.py
)
each_file = pytest.mark.parametrize(
  "path",
  [
    pytest.param(path, id=path.stem, marks=[pytest.mark.long] * (path.stem == "timm_teacher"))
    for path in FILES
  ],
)


@functools.cache
def losses_of(path, **options):
  # The generator that compiles fastest; otherwise initial weights take most of the time.
  with jax.default_prng_impl("rbg"):
    return load(path).main(steps=8, **options)


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@each_file
def test_loss_falls(path):
  losses = losses_of(path)
  assert len(losses) == 8 and np.isfinite(losses).all()
  assert losses[-1] < 0.97 * losses[0]


# The examples of whole training loops of other code bases.
LOOPS = {"bare_jax", "flax_nnx", "equinox_model", "shard_map_step"}


@pytest.mark.parametrize("path", [*FILES, BY_PATH], ids=lambda path: path.stem)
def test_file_is_short(path):
  assert len(path.read_text().splitlines()) <= (60 if path.stem in LOOPS else 40)


def test_there_is_a_file_for_each_code_base():
  foreign = {"equinox_teacher", "nnx_student", "stablehlo_teacher", "torch_module"}
  assert {path.stem for path in FILES} == LOOPS | foreign | {"logits_file", "timm_teacher"}


def test_model_named_by_its_file_learns(capsys):
  assert load(BY_PATH).main(epochs=4) > 0.6
  assert "bundle" not in capsys.readouterr().out


def test_bare_arrays_need_no_output():
  assert "Output" not in (FOLDER / "bare_jax.py").read_text().split('"""', 2)[2]


def test_eight_devices_have_the_losses_of_one():
  path = FOLDER / "shard_map_step.py"
  assert len(jax.devices()) == 8
  np.testing.assert_allclose(
    losses_of(path), losses_of(path, devices=(jax.devices()[0],)), rtol=1e-4
  )
