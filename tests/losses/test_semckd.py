"""SemCKD: weighted differences of pairs of layers by their definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.losses import semantic_calibration, weighted_mse
from jaxkd.types import Output


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_loss_equals_the_definition():
  s = Output(features={"a": draw(3, 2, 2, 4), "b": draw(3, 5, seed=1)})
  t = Output(features={"a": draw(3, 2, 2, 4, seed=2), "b": draw(3, 5, seed=3)})
  weights = [np.array([0.2, 0.5, 1.0]), np.array([0.8, 0.5, 0.0])]
  found = semantic_calibration(s, t, stages=["a", "b"], attention=weights, layers=2).feature
  wanted = 0.0
  for name, weight in zip("ab", weights, strict=True):
    for example in range(3):
      gap = s.features[name][example] - t.features[name][example]
      wanted += weight[example] * np.mean(gap.astype("float64") ** 2)
  np.testing.assert_allclose(found, wanted / (3 * 2), rtol=1e-5)


def test_gradient_of_a_weight_is_the_mean_squared_difference_of_its_example():
  s, t = draw(3, 4), draw(3, 4, seed=1)
  gradient = jax.grad(lambda w: weighted_mse(s, t, weights=w))(jnp.ones(3))
  np.testing.assert_allclose(gradient, ((s - t) ** 2).mean(1) / 3, rtol=1e-5)


@pytest.mark.parametrize(
  ("shape", "options", "message"),
  [
    ((3, 5), {}, r"stage 'x'.*differ in shape; an adapter .*SemanticCalibration"),
    ((3, 4), {"attention": []}, r"attention has 0 weights, stages 1: give one for each"),
    ((3, 4), {"attention": [jnp.ones((3, 1))]}, r"weights \(3, 1\) do not fit .* expected \(B,\)"),
    ((3, 4), {"layers": 0}, r"layers is 0: expected at least 1"),
  ],
)
def test_error_for_wrong_arguments_names_them(shape, options, message):
  s, t = Output(features={"x": jnp.ones((3, 4))}), Output(features={"x": jnp.ones(shape)})
  with pytest.raises(ConfigError, match=message):
    semantic_calibration(s, t, stages=["x"], **options)
