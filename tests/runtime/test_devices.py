"""Choosing devices, mapped steps, and bounded dispatch."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from jaxkd import methods
from jaxkd.errors import ConfigError
from jaxkd.runtime import devices, mapping
from jaxkd.train import TrainState, create_state, training_step
from tests.tiny import TinyNet, batch


@pytest.mark.long
@pytest.mark.parametrize("count", [2, 8])
def test_three_hundred_steps_run_with_few_in_flight(count):
  scheme = methods.supervised(TinyNet(axis_name=mapping.AXIS_NAME))
  optimizer = optax.sgd(0.05)
  chosen = jax.local_devices()[:count]
  state = create_state(scheme, optimizer, jax.random.key(0), batch())
  step = mapping.map_training_step(
    training_step(scheme, optimizer, lambda keys, data: data, axis_name=mapping.AXIS_NAME), chosen
  )
  state = mapping.replicate(state, chosen)
  data = mapping.shard(jax.tree.map(np.asarray, batch(16)), chosen)
  in_flight = mapping.StepsInFlight()
  losses = []
  for _ in range(300):
    state, metrics = step(state, data)
    losses += in_flight.push(metrics)
  losses += in_flight.drain()
  assert len(losses) == 300
  assert int(state.step) == 300
  assert losses[-1]["loss"][0] < 0.5 * losses[0]["loss"][0]


def test_one_compilation_serves_every_step():
  """The first state, which no step returned, must not compile the step a second time."""
  traces = []

  def step(state, data):
    traces.append(1)
    return dataclasses.replace(state, step=state.step + 1), {}

  chosen = jax.local_devices()[:2]
  mapped = mapping.map_training_step(step, chosen)
  start = TrainState(np.int32(0), np.zeros(2, np.uint32), {"student": np.ones(2)}, None)
  state = mapping.replicate(start, chosen)
  compiled = []
  for _ in range(3):
    state, _ = mapped(state, np.ones((2, 1), np.float32))
    compiled.append(len(traces))
  assert compiled == [1, 1, 1]
  assert int(state.step) == 3


def test_steps_in_flight_returns_results_late_and_in_order():
  in_flight = mapping.StepsInFlight(limit=2)
  assert [in_flight.push(n) for n in range(4)] == [[], [], [0], [1]]
  assert in_flight.drain() == [2, 3]


def test_an_indivisible_batch_size_is_an_error():
  with pytest.raises(ConfigError, match=r"batch_size=20: not divisible by 8 \(8 devices x 1 proc"):
    devices.local_devices(0, 20)
  with pytest.raises(ConfigError, match="batch_size=16: not divisible by 32"):
    devices.local_devices(8, 16, accumulate=4)
  assert len(devices.local_devices(4, 20)) == 4


def test_more_devices_than_available_are_an_error():
  with pytest.raises(ConfigError, match=r"devices=9: this machine has 8 \(cpu\)"):
    devices.local_devices(9, 18)


def test_small_steps_use_one_cpu_device():
  choose = functools.partial(devices.choose_devices, jax.local_devices())
  assert len(choose([10_000_000, 40_000_000], 64)) == 8
  assert len(choose([10_000_000, 2_000_000], 64)) == 1
  assert len(choose([10_000_000], 640)) == 8
  assert len(choose([None, 10], 64)) == 8, "unknown work counts as large"
