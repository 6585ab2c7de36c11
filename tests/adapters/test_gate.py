"""ONE's gate: its values, initialisation and refused inputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.adapters import Gate
from jaxkd.errors import ConfigError
from tests.methods.one_step import assert_all_moved, assert_all_zero, jit
from tests.models.drawn import drawn

GATE = Gate(3)
MAPS = np.random.default_rng(0).normal(size=(5, 2, 3, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def variables():
  return drawn(GATE, MAPS, train=False)


def by_hand(variables, mean=None, var=None):
  params, statistics = variables["params"], variables["batch_stats"]["bn"]
  x = MAPS.mean((1, 2)) @ params["linear"]["kernel"] + params["linear"]["bias"][None]
  mean = x.mean(0) if mean is None else statistics["mean"]
  var = x.var(0) if var is None else statistics["var"]
  x = (x - mean[None]) / np.sqrt(var + 1e-5)[None]
  x = np.maximum(x * params["bn"]["scale"][None] + params["bn"]["bias"][None], 0)
  return np.exp(x) / np.exp(x).sum(1, keepdims=True)


def test_output_is_softmax_of_relu_of_the_normalised_linear_layer_of_the_mean(variables):
  train, moved = jit(lambda v: GATE.apply(v, MAPS, True, mutable=["batch_stats"]))(variables)
  np.testing.assert_allclose(train, by_hand(variables), rtol=1e-4)
  assert_all_moved(variables["batch_stats"], moved["batch_stats"])
  running = jit(lambda v: GATE.apply(v, MAPS, False))(variables)
  np.testing.assert_allclose(running, by_hand(variables, mean=True, var=True), rtol=1e-4)
  assert not np.allclose(train, running)


def test_a_vector_is_taken_as_the_mean_of_a_map(variables):
  both = jit(lambda v, m: (GATE.apply(v, m, False), GATE.apply(v, m.mean((1, 2)), False)))
  np.testing.assert_allclose(*both(variables, MAPS), rtol=1e-6)


def test_a_single_branch_has_weight_one_and_the_gate_no_gradient():
  gate = Gate(1)
  variables = drawn(gate, MAPS, train=False)

  def weight(params):
    changed = {**variables, "params": params}
    return gate.apply(changed, MAPS, True, mutable=["batch_stats"])[0][:, 0].sum()

  total, gradients = jit(jax.value_and_grad(weight))(variables["params"])
  assert total == 5
  assert_all_zero(gradients)


def test_initial_values_are_torchs_and_weights_are_float32():
  gate = Gate(64, dtype=jnp.bfloat16)
  linear = jit(lambda key: gate.init(key, MAPS, True)["params"]["linear"])(jax.random.key(0))
  for leaf in linear.values():
    assert leaf.dtype == jnp.float32
    assert 0.45 < np.abs(leaf).max() <= 0.5  # 1 / sqrt(4 channels)
    assert abs(leaf.mean()) < 0.1
  weights = jax.eval_shape(lambda: gate.init_with_output(jax.random.key(0), MAPS, True)[0])
  assert (weights.dtype, weights.shape) == (jnp.float32, (5, 64))


def test_wrong_features_and_no_branches_are_refused():
  with pytest.raises(ConfigError, match=r"Gate: features \(2, 3, 4\) are neither"):
    GATE.init(jax.random.key(0), jnp.ones((2, 3, 4)), False)
  with pytest.raises(ConfigError, match="branches is 0"):
    Gate(0).init(jax.random.key(0), jnp.ones((2, 3)), False)
