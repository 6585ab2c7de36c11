"""Weights as functions of the step."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.errors import ConfigError
from jaxkd.experiment.config import base_config
from jaxkd.methods import RAMPS, Distillation, ramp, warm_up
from jaxkd.methods.objective import _ramped

each_ramp = pytest.mark.parametrize("kind", RAMPS)
weights = st.floats(-10, 10, width=32)


def at(kind, *steps, **options):
  return np.asarray(ramp(kind, **options)(jnp.asarray(steps)))


@each_ramp
@given(start=weights, end=weights, steps=st.integers(1, 1000))
def test_a_ramp_is_constant_after_its_end(kind, start, end, steps):
  values = at(kind, steps, steps + 1, 10 * steps, start=start, end=end, steps=steps)
  np.testing.assert_allclose(values, end, rtol=1e-5, atol=1e-5)


@each_ramp
@given(steps=st.floats(2, 100))
def test_a_ramp_is_monotonic(kind, steps):
  values = at(kind, *range(100), steps=steps, start=3.0, end=1.0)
  assert np.all(np.diff(values) <= 1e-6)
  assert np.all((values <= 3.0 + 1e-6) & (values >= 1.0 - 1e-6))
  assert values[0] > values[-1]


def test_the_shapes_are_those_of_the_formulas():
  halfway = {kind: at(kind, 4, steps=8).item() for kind in RAMPS}
  expected = {"linear": 0.5, "cosine": 0.5, "exponential": np.exp(-5 * 0.25)}
  assert halfway == pytest.approx(expected)
  quarter = {kind: at(kind, 2, steps=8).item() for kind in RAMPS}
  expected = {"linear": 0.25, "cosine": (1 - np.sqrt(0.5)) / 2, "exponential": np.exp(-5 * 0.5625)}
  assert quarter == pytest.approx(expected)
  # ONE's weights at epochs 0, 20, 40 and 60 of 80.
  values = at("exponential", 0, 20, 40, 60, steps=80)
  np.testing.assert_allclose(values, [0.0067, 0.060, 0.287, 0.732], atol=5e-4)


def test_linear_equals_optax():
  steps = jnp.arange(12)
  ours = ramp("linear", steps=10, start=4.0, end=1.0)(steps)
  theirs = jax.vmap(optax.linear_schedule(4.0, 1.0, 10))(steps)
  np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_an_unknown_kind_and_no_steps_are_refused():
  with pytest.raises(ConfigError, match=r"^unknown ramp 'liner': did you mean 'linear'"):
    ramp("liner", steps=3)
  with pytest.raises(ConfigError, match=r"^steps is 0: a ramp takes"):
    ramp("linear", steps=0)


def test_a_warm_up_rises_by_epochs_and_is_full_from_the_last_on():
  rising = warm_up(2.0, epochs=4, steps_per_epoch=3)
  found = [float(rising(jnp.int32(step))) for step in (0, 2, 3, 6, 9, 11, 12, 500)]
  assert found == [0.5, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0]
  assert warm_up(2.0, epochs=1, steps_per_epoch=3) == warm_up(2.0, epochs=0, steps_per_epoch=3)
  assert warm_up(0.0, epochs=20, steps_per_epoch=3) == 0.0


def test_a_ramp_of_the_objective_multiplies_a_methods_warm_up():
  settings = base_config("dkd")
  settings.method.update({"ramp": "linear", "ramp_epochs": 8.0, "ramp_start": 0.5, "weight": 3.0})
  settings.method.warmup_epochs = 4.0
  setup = types.SimpleNamespace(steps_per_epoch=10, hyperparameters=settings.method)
  distillation = Distillation("dkd", None, warm_up(3.0, epochs=4.0, steps_per_epoch=10))
  weight = _ramped(distillation, setup).weight
  found = [float(weight(jnp.int32(step))) for step in (0, 20, 40, 80)]
  np.testing.assert_allclose(found, [3 * 0.5 / 4, 3 * 0.625 * 3 / 4, 3 * 0.75, 3.0], rtol=1e-6)
