"""Optimizers in PyTorch's conventions, against hand-computed updates."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd.errors import ConfigError
from jaxkd.train import learning_rate_schedule, make_optimizer, take_turns


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


# Every kind of optimizer state: momentum, decay, a rate that drops, a clipped norm.
OWN = make_optimizer(
  "sgd",
  learning_rate_schedule(
    "step", learning_rate=0.1, epochs=4, steps_per_epoch=1, drops=(1, 2), warmup_epochs=2
  ),
  momentum=0.9,
  weight_decay=0.1,
  clip_norm=0.5,
)


def drawn(seed, names=("peer_0", "peer_1")):
  keys = jax.random.split(jax.random.key(seed), len(names))
  return {
    name: {"kernel": jax.random.normal(key, (3, 2 + number)), "bias": jnp.ones(2)}
    for number, (name, key) in enumerate(zip(names, keys, strict=True))
  }


@functools.cache
def step_of(optimizer):
  @jax.jit
  def step(params, state, gradient):
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  return step


def trained(optimizer, params, gradients, state=None):
  """Parameters and state after each update by these gradients."""
  state, step = optimizer.init(params) if state is None else state, step_of(optimizer)
  for gradient in gradients:
    params, state = step(params, state, gradient)
  return params, state


def test_taking_turns_each_participant_trains_as_if_alone_on_its_own_updates():
  start, gradients = drawn(0), [drawn(seed) for seed in range(1, 8)]
  together, _ = trained(take_turns(OWN, ["peer_0", "peer_1"]), start, gradients)
  for number, name in enumerate(start):
    own = [gradient[name] for gradient in gradients[number::2]]
    alone, _ = trained(OWN, start[name], own)
    chex.assert_trees_all_equal(together[name], alone)


def test_other_participants_in_turn_do_not_change_and_those_without_turns_do():
  names = ("peer_0", "peer_1", "gate")
  params = drawn(0, names)
  optimizer = take_turns(OWN, ["peer_0", "peer_0", "peer_1"])
  state, moved = None, []
  for seed in range(1, 7):
    before = params
    params, state = trained(optimizer, params, [drawn(seed, names)], state)
    same = jax.tree.map(np.array_equal, before, params)
    assert all(len(set(leaves.values())) == 1 for leaves in same.values())
    moved.append([name for name in names if not same[name]["kernel"]])
  first, second = ["peer_0", "gate"], ["peer_1", "gate"]
  assert moved == 2 * [first, first, second]


def test_turns_resume_from_a_saved_state():
  optimizer = take_turns(OWN, ["peer_0", "peer_1"])
  start, gradients = drawn(0), [drawn(seed) for seed in range(1, 6)]
  whole = trained(optimizer, start, gradients)
  params, state = trained(optimizer, start, gradients[:3])
  leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
  state = jax.tree.unflatten(jax.tree.structure(optimizer.init(start)), leaves)
  chex.assert_trees_all_equal(trained(optimizer, params, gradients[3:], state), whole)


def test_turns_that_are_empty_or_name_no_learner_are_refused():
  with pytest.raises(ConfigError, match="turns: expected at least one name"):
    take_turns(OWN, [])
  with pytest.raises(ConfigError, match="unknown participant in turns 'peer_2': did you mean"):
    take_turns(OWN, ["peer_0", "peer_2"]).init(drawn(0))
