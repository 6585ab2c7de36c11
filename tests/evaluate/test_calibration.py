"""The expected calibration error, from sums by bin of confidence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.evaluate import calibration_bins, calibration_error


def by_hand(logits, labels, bins):
  probabilities = np.exp(logits - logits.max(1, keepdims=True))
  probabilities /= probabilities.sum(1, keepdims=True)
  confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
  error = 0.0
  for k in range(bins):
    chosen = (np.floor(confidence * bins) == k) | ((k == bins - 1) & (confidence == 1))
    if chosen.any():
      error += chosen.mean() * abs(correct[chosen].mean() - confidence[chosen].mean())
  return error


def test_error_agrees_with_the_definition_over_two_batches():
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(0, 3, (200, 7)), rng.integers(0, 7, 200)
  sums = sum(
    jax.jit(calibration_bins)(logits[part], labels[part], jnp.ones(100))
    for part in (slice(0, 100), slice(100, 200))
  )
  assert calibration_error(sums) == pytest.approx(by_hand(logits, labels, 15), abs=1e-5)


def test_certain_and_correct_predictions_have_no_error():
  logits = 100.0 * jnp.eye(4)
  assert calibration_error(calibration_bins(logits, jnp.arange(4), jnp.ones(4))) == 0


def test_examples_of_weight_zero_may_hold_anything():
  logits, labels = jnp.array([[0.0, 2.0], [jnp.nan, 1.0]]), jnp.array([1, 9])
  sums = calibration_bins(logits, labels, jnp.array([1.0, 0.0]))
  np.testing.assert_array_equal(sums, calibration_bins(logits[:1], labels[:1], jnp.ones(1)))
  assert np.isnan(calibration_error(0 * sums))


def test_wrong_shapes_and_no_bins_are_refused():
  with pytest.raises(ConfigError, match="bins=0: expected at least 1"):
    calibration_bins(jnp.zeros((2, 3)), jnp.zeros(2, int), jnp.ones(2), bins=0)
  with pytest.raises(ConfigError, match=r"labels \(3,\)"):
    calibration_bins(jnp.zeros((2, 3)), jnp.zeros(3, int), jnp.ones(2))
