"""PS-KD's loss: definition, the weight by epoch, and what bounds it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd import losses
from jaxkd.errors import ConfigError
from jaxkd.losses.pskd import past_weight_of, softened_labels

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
compute = jit(
  jax.value_and_grad(lambda s, t, y, a: losses.past_cross_entropy(s, t, y, past_weight=a), (0, 1))
)


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


def softmax(x):
  x = np.exp(x.astype("float64") - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


@pytest.mark.parametrize("shape", [(6, 5), (3, 2, 4)])
@pytest.mark.parametrize("scale", [1e-18, 1.0, 30.0, 1e8])
def test_loss_equals_the_definition(shape, scale):
  s, past = np.float32(scale) * draw(*shape), softmax(draw(*shape, seed=1))
  labels = np.arange(np.prod(shape[:-1])).reshape(shape[:-1]) % shape[-1]
  target = 0.7 * np.eye(shape[-1])[labels] + 0.3 * past
  log_p = s.astype("float64") - s.max(-1, keepdims=True)
  log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
  value, (slope, _) = compute(s, past.astype("float32"), labels, 0.3)
  np.testing.assert_allclose(value, -(target * log_p).sum(-1).mean(), rtol=1e-5)
  count = np.prod(shape[:-1])
  np.testing.assert_allclose(slope, (softmax(s) - target) / count, rtol=1e-4, atol=1e-6)


@given(st.integers(0, 2**16), st.floats(0, 1, width=32))
def test_the_softened_labels_themselves_are_the_minimum(seed, weight):
  past, labels = softmax(draw(4, 5, seed=seed)).astype("float32"), np.arange(4)
  target = np.asarray(softened_labels(jnp.asarray(past), labels, weight))
  np.testing.assert_allclose(target.sum(-1), 1, rtol=1e-5)
  best, (slope, _) = compute(np.log(np.maximum(target, 1e-30)), past, labels, weight)
  np.testing.assert_allclose(slope, 0, atol=1e-6)
  assert compute(draw(4, 5, seed=seed + 1), past, labels, weight)[0] >= best - 1e-6


def test_the_past_takes_no_gradient_and_weight_0_is_the_cross_entropy():
  s, past, labels = draw(6, 5), softmax(draw(6, 5, seed=1)).astype("float32"), np.arange(6) % 5
  value, (slope, of_past) = compute(s, past, labels, 0.0)
  assert not of_past.any()
  wanted, slopes = jit(jax.value_and_grad(losses.cross_entropy))(s, labels)
  np.testing.assert_allclose(value, wanted, rtol=1e-6)
  np.testing.assert_allclose(slope, slopes, rtol=1e-5, atol=1e-7)
  each = np.array([0, 0.2, 1, 0.5, 0, 0.9], "float32")
  mixed = [compute(s[i : i + 1], past[i : i + 1], labels[i : i + 1], each[i])[0] for i in range(6)]
  np.testing.assert_allclose(compute(s, past, labels, each)[0], np.mean(mixed), rtol=1e-6)


def test_the_weight_grows_by_epoch_to_the_last():
  found = past_weight_of(np.array([0, 1, 9, 12]), last=0.8, of=10)
  np.testing.assert_allclose(found, [0.08, 0.16, 0.8, 0.8], rtol=1e-6)


def test_an_impossible_class_without_a_part_adds_nothing():
  s, past = draw(2, 3), np.array([[0.5, 0.5, 0], [1, 0, 0]], "float32")
  s[:, 2] = -np.inf
  labels = np.array([0, 1])
  value, (slope, _) = compute(s, past, labels, 0.5)
  wanted, _ = compute(s[:, :2], past[:, :2], labels, 0.5)
  np.testing.assert_allclose(value, wanted, rtol=1e-6)
  assert np.isfinite(slope).all() and not slope[:, 2].any()
  assert compute(s, past[:, ::-1], labels, 0.5)[0] == np.inf


def test_labels_of_no_class_are_nan_and_wrong_shapes_are_refused():
  s, past = draw(2, 3), np.full((2, 3), 1 / 3, "float32")
  value, (slope, _) = compute(s, past, np.array([0, 3]), 0.5)
  assert np.isnan(value) and np.isnan(slope[1]).all() and not np.isnan(slope[0]).any()
  with pytest.raises(ConfigError, match=r"^past_weight is 1.5: it must lie between 0 and 1$"):
    losses.past_cross_entropy(s, past, np.array([0, 1]), past_weight=1.5)
  with pytest.raises(ConfigError, match=r"student \(2, 3\) and past \(1, 3\) differ in shape"):
    losses.past_cross_entropy(s, past[:1], np.array([0, 1]))
  with pytest.raises(ConfigError, match=r"^labels \(3,\) do not belong to predictions \(2, 3\)"):
    losses.past_cross_entropy(s, past, np.array([0, 1, 2]))
  with pytest.raises(ConfigError, match=r"^past_weight \(3,\) does not belong to logits \(2, 3\)"):
    losses.past_cross_entropy(s, past, np.array([0, 1]), past_weight=np.ones(3))
