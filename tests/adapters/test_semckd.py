"""SemCKD's attention: any batch size, padding, several devices; and the pairs of its adapter."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.adapters import SemanticCalibration, StageAttention
from jaxkd.errors import ConfigError
from jaxkd.types import Batch, Output
from tests.methods.one_step import jit

SLOTS = 6


def layers(size, seed=0):
  rng = np.random.default_rng(seed)
  student = [rng.normal(size=(size, 2, 2, 3)).astype("float32")]
  teacher = [rng.normal(size=(size, n)).astype("float32") for n in (4, 5)]
  return student, teacher


def attention(**options):
  return StageAttention(("s",), ("t", "u"), slots=SLOTS, factor=2, **options)


@functools.cache
def variables():
  return jit(lambda x: attention().init(jax.random.key(0), *x))(layers(SLOTS))


def run(student, teacher, mask=None, **options):
  return jit(functools.partial(attention(**options).apply, variables()))(student, teacher, mask)


@pytest.mark.parametrize("size", [1, 4, 6, 15])
def test_weights_of_any_batch_size_sum_to_one(size):
  found = run(*layers(size))
  assert found.shape == (size, 1, 2)
  np.testing.assert_allclose(found.sum(2), 1, rtol=1e-5)


def test_examples_beyond_the_slots_share_them():
  student, teacher = layers(2 * SLOTS)
  for x in (*student, *teacher):
    x[SLOTS:] = 0
  # Zeros add nothing to the similarities of the first examples.
  found = run(student, teacher)[:SLOTS]
  np.testing.assert_allclose(
    found, run([x[:SLOTS] for x in student], [x[:SLOTS] for x in teacher]), rtol=1e-5
  )


def test_padding_has_no_effect_on_the_examples():
  student, teacher = layers(SLOTS)
  mask = np.array([1, 1, 0, 1, 1, 1], "float32")
  found = run(student, teacher, mask)
  for x in (*student, *teacher):
    x[2] = np.nan
  np.testing.assert_array_equal(run(student, teacher, mask)[mask > 0], found[mask > 0])


def test_zero_features_give_finite_weights_and_gradients():
  def loss(student, teacher):
    return jnp.sum(attention().apply(variables(), student, teacher)[..., 0] ** 2)

  for scale in (0.0, 1e-18, 1e8):
    student, teacher = ([np.float32(scale) * x for x in side] for side in layers(4))
    value, gradient = jit(jax.value_and_grad(loss))(student, teacher)
    assert np.isfinite(value) and all(np.isfinite(x).all() for x in gradient)


@pytest.mark.long
@pytest.mark.parametrize("devices", [2, 3])
def test_devices_compare_the_examples_of_all(devices):
  student, teacher = layers(6)
  split = [[x.reshape(devices, -1, *x.shape[1:]) for x in side] for side in (student, teacher)]
  module = attention(device_axis="device")
  mapped = jax.vmap(functools.partial(module.apply, variables()), axis_name="device")
  found = jit(mapped)(*split)
  np.testing.assert_allclose(found.reshape(6, 1, 2), run(student, teacher), rtol=1e-4)


def test_adapter_brings_each_pair_to_one_shape():
  student = Output(features={"a": jnp.ones((3, 4, 4, 2)), "b": jnp.ones((3, 2, 2, 2))})
  teacher = Output(features={"c": jnp.ones((3, 2, 2, 5))})
  adapter = SemanticCalibration(("a", "b"), {"c": 5}, slots=4)
  batch = Batch(None, None, None, None)
  ours, theirs = jax.eval_shape(
    lambda: adapter.init_with_output(jax.random.key(0), (student, teacher, batch), False)[0]
  )
  for pair in ("a:c", "b:c"):
    assert ours.features[pair].shape == theirs.features[pair].shape == (3, 2, 2, 5)
  assert ours.features["attention"].shape == (3, 2, 1)
  with pytest.raises(ConfigError, match=r"slots is 3: expected at least factor=4"):
    StageAttention(("s",), ("t",), slots=3).init(jax.random.key(0), *layers(2))
