"""Cross-entropy with labels: definition, weights of labels and of classes, devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxkd.errors import ConfigError
from jaxkd.losses import cross_entropy

LOGITS = hnp.arrays(np.float32, (4, 5), elements=st.floats(-1e4, 1e4, width=32))
weighted_cross_entropy = jax.jit(jax.value_and_grad(cross_entropy))


@given(LOGITS, hnp.arrays(np.int32, 4, elements=st.integers(0, 4)))
def test_cross_entropy_is_finite_and_equals_the_negative_log_likelihood(logits, labels):
  value, gradient = weighted_cross_entropy(logits, labels)
  log_p = jax.nn.log_softmax(logits)
  np.testing.assert_allclose(value, -log_p[np.arange(4), labels].mean(), rtol=1e-5, atol=1e-6)
  assert np.isfinite(gradient).all()


def test_class_probabilities_and_class_numbers_give_the_same_value():
  logits, labels = jnp.arange(6.0).reshape(2, 3), jnp.array([2, 0])
  np.testing.assert_allclose(
    cross_entropy(logits, jax.nn.one_hot(labels, 3)), cross_entropy(logits, labels), rtol=1e-6
  )


def test_label_smoothing_spreads_evenly_over_all_classes():
  logits, labels = jnp.arange(6.0).reshape(2, 3), jnp.array([2, 0])
  smooth = 0.7 * jax.nn.one_hot(labels, 3) + 0.1
  np.testing.assert_allclose(
    cross_entropy(logits, labels, label_smoothing=0.3), cross_entropy(logits, smooth), rtol=1e-6
  )
  with pytest.raises(ConfigError, match=r"label_smoothing is 1\.5"):
    cross_entropy(logits, labels, label_smoothing=1.5)


def test_weight_zero_excludes_an_example():
  logits, labels = jnp.arange(6.0).reshape(2, 3), jnp.array([2, -1])
  value = cross_entropy(logits, labels, jnp.array([3.0, 0.0]))
  np.testing.assert_allclose(value, cross_entropy(logits[:1], labels[:1]), rtol=1e-6)


def test_value_and_gradient_are_zero_if_all_weights_are_zero():
  value, gradient = weighted_cross_entropy(jnp.eye(3), jnp.array([0, 1, 2]), jnp.zeros(3))
  assert value == 0 and (gradient == 0).all()


def test_weighted_mean_over_devices_equals_the_global_batch():
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(16, 3)).astype("float32"), rng.integers(0, 3, 16)
  weights = (rng.random(16) < 0.4).astype("float32")
  weights[:2] = 0  # a device without a single labelled example

  def shard(z, y, w):
    value, gradient = jax.value_and_grad(cross_entropy)(z, y, w, axis_name="batch")
    return jax.lax.pmean(value, "batch"), gradient / 8

  split = [x.reshape(8, 2, *x.shape[1:]) for x in (logits, labels, weights)]
  value, gradient = jax.pmap(shard, axis_name="batch", out_axes=(None, 0))(*split)
  expected, expected_gradient = weighted_cross_entropy(logits, labels, weights)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(gradient.reshape(16, 3), expected_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("labels", [jnp.zeros((3,), int), jnp.zeros((2, 4)), jnp.zeros((2,))])
def test_error_for_labels_of_wrong_shape_names_both_shapes(labels):
  with pytest.raises(ConfigError, match=r"labels .* do not belong to logits \(2, 3\)"):
    cross_entropy(jnp.ones((2, 3)), labels)


def test_error_for_weights_of_wrong_shape_names_both_shapes():
  with pytest.raises(ConfigError, match=r"weights \(3,\) do not belong to logits \(2, 3\)"):
    cross_entropy(jnp.ones((2, 3)), jnp.array([0, 1]), jnp.ones(3))


WEIGHTS = (0.5, 0.0, 3.0)


def torchs(logits, labels, weights, smoothing, counted):
  """The documented formula of torch.nn.CrossEntropyLoss(weight, label_smoothing=...)."""
  logits = np.asarray(logits, np.float64)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  weights, rows = np.asarray(weights), np.arange(len(labels))
  true = -weights[labels] * log_p[rows, labels]
  spread = -(weights * log_p).sum(-1) / len(weights)
  losses = (1 - smoothing) * true + smoothing * spread
  return (counted * losses).sum() / (counted * weights[labels]).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_are_torchs(smoothing):
  logits = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
  labels, counted = np.arange(12) % 3, (np.arange(12) > 1).astype(np.float32)
  found = cross_entropy(
    logits, labels, counted, label_smoothing=smoothing, class_weights=np.float32(WEIGHTS)
  )
  np.testing.assert_allclose(found, torchs(logits, labels, WEIGHTS, smoothing, counted), rtol=1e-6)
  ones = cross_entropy(logits, labels, label_smoothing=smoothing, class_weights=np.ones(3))
  np.testing.assert_allclose(
    ones, cross_entropy(logits, labels, label_smoothing=smoothing), rtol=1e-6
  )


def test_an_impossible_class_of_weight_0_adds_nothing():
  logits = jnp.array([[0.0, -jnp.inf, 1.0], [0.0, 1.0, 2.0]])
  found, slopes = jax.value_and_grad(cross_entropy)(
    logits, jnp.array([1, 2]), class_weights=jnp.array(WEIGHTS)
  )
  np.testing.assert_allclose(found, -jax.nn.log_softmax(logits[1])[2], rtol=1e-6)
  assert not slopes[0].any() and np.isfinite(slopes).all()


@pytest.mark.parametrize(
  ("labels", "weights", "message"),
  [
    (jnp.zeros(2, int), jnp.ones(2), r"class_weights \(2,\) do not belong to logits \(2, 3\)"),
    (jnp.ones((2, 3)) / 3, jnp.ones(3), "class_weights: expected None with labels that are"),
  ],
)
def test_class_weights_that_do_not_fit_are_refused(labels, weights, message):
  with pytest.raises(ConfigError, match=message):
    cross_entropy(jnp.zeros((2, 3)), labels, class_weights=weights)
