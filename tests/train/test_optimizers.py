"""Optimizers in PyTorch's conventions, against hand-computed updates."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.train import learning_rate_schedule, make_optimizer


def run(optimizer, weight, gradients):
  state, trace = optimizer.init(jnp.float32(weight)), []
  for gradient in gradients:
    update, state = optimizer.update(jnp.float32(gradient), state, jnp.float32(weight))
    weight = float(weight + update)
    trace.append(weight)
  return trace


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_adds_weight_decay_before_momentum_as_torch_does(nesterov):
  gradients, decay, momentum, rate = [1.0, -0.5, 0.25], 0.1, 0.9, 0.2
  weight, buffer, expected = 2.0, 0.0, []
  for gradient in gradients:
    gradient = gradient + decay * weight
    buffer = momentum * buffer + gradient
    weight -= rate * (gradient + momentum * buffer if nesterov else buffer)
    expected.append(weight)
  optimizer = make_optimizer(
    "sgd", lambda count: rate, momentum=momentum, nesterov=nesterov, weight_decay=decay
  )
  np.testing.assert_allclose(run(optimizer, 2.0, gradients), expected, rtol=1e-6)


def test_clipping_bounds_the_global_norm():
  optimizer = make_optimizer("sgd", lambda count: 1.0, momentum=0.0, clip_norm=0.5)
  np.testing.assert_allclose(run(optimizer, 0.0, [3.0, 0.25]), [-0.5, -0.75], rtol=1e-6)


def test_adamw_decays_the_weight_itself():
  optimizer = make_optimizer("adamw", lambda count: 0.1, weight_decay=0.5)
  np.testing.assert_allclose(run(optimizer, 2.0, [0.0]), [2.0 - 0.1 * 0.5 * 2.0], rtol=1e-6)


def test_step_schedule_drops_when_the_epoch_is_over():
  rate = learning_rate_schedule(
    "step", learning_rate=0.05, epochs=240, steps_per_epoch=782, drops=(150, 180, 210)
  )
  at = [rate(epoch * 782 + offset) for epoch, offset in [(150, -1), (150, 0), (180, 0), (210, 0)]]
  np.testing.assert_allclose(at, [0.05, 0.005, 0.0005, 0.00005], rtol=1e-5)


def test_cosine_ends_at_zero_and_warm_up_rises_linearly():
  rate = learning_rate_schedule(
    "cosine", learning_rate=1.0, epochs=4, steps_per_epoch=5, warmup_epochs=1
  )
  np.testing.assert_allclose(rate(0), 0.2, rtol=1e-5)
  np.testing.assert_allclose(rate(10), 0.5, rtol=1e-5)
  np.testing.assert_allclose(rate(20), 0.0, atol=1e-7)


def test_unknown_names_are_refused_with_the_nearest():
  with pytest.raises(ConfigError, match="unknown optimizer 'adam': did you mean 'adamw'"):
    make_optimizer("adam", lambda count: 0.1)
  with pytest.raises(ConfigError, match="unknown schedule 'cosin'"):
    learning_rate_schedule("cosin", learning_rate=0.1, epochs=1, steps_per_epoch=1)
  with pytest.raises(ConfigError, match="nesterov=True needs momentum > 0"):
    make_optimizer("sgd", lambda count: 0.1, momentum=0.0, nesterov=True)
