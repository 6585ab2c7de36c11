"""Calibration in bins of equal mass, its bias, and the fitted temperature."""

import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.evaluate import equal_mass_reliability, fit_temperature, image_scores
from jaxkd.evaluate.reliability import TEMPERATURES


def calibrated(count, seed=0, sharpness=1.0):
  """Logits whose probabilities, at temperature `sharpness`, are those of the labels."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(0, 2, (count, 4))
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  return sharpness * logits, np.array([rng.choice(4, p=row) for row in p])


def test_bins_hold_equal_numbers_and_their_error_is_that_of_a_loop():
  logits, labels = calibrated(150)
  found = equal_mass_reliability(logits, labels, bins=15)
  assert found.images.tolist() == [10] * 15
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  order = np.argsort(p.max(1))
  gaps = [
    abs((p[part].argmax(1) == labels[part]).mean() - p[part].max(1).mean())
    for part in order.reshape(15, 10)
  ]
  assert found.error == pytest.approx(np.mean(gaps), abs=1e-6)


def test_the_debiased_error_subtracts_what_noise_adds():
  # By samples, as the published code; exactly calibrated predictions have an error of noise alone.
  logits, labels = calibrated(300)
  found = equal_mass_reliability(logits, labels)
  spread = np.sqrt(found.accuracy * (1 - found.accuracy) / found.images)
  draws = np.random.default_rng(1).normal(found.accuracy, spread, (20_000, len(spread)))
  resampled = (np.abs(draws - found.confidence) @ found.images / found.images.sum()).mean()
  assert found.debiased == pytest.approx(max(0, 2 * found.error - resampled), abs=2e-4)
  assert found.debiased < 0.8 * found.error


def test_equal_confidences_share_a_bin_in_any_order():
  logits, labels = np.zeros((6, 2)), np.array([0, 0, 0, 1, 1, 1])
  found = equal_mass_reliability(logits, labels)
  assert (found.images.tolist(), found.accuracy.tolist(), found.error) == ([6], [0.5], 0.0)
  logits, labels = calibrated(40)
  logits = np.round(logits)
  back = equal_mass_reliability(logits[::-1], labels[::-1], bins=4)
  assert back.error == pytest.approx(equal_mass_reliability(logits, labels, bins=4).error)


def test_the_temperature_undoes_a_factor_and_lowers_the_likelihood_loss():
  logits, labels = calibrated(3000, sharpness=3.0)
  found = fit_temperature(logits, labels)
  assert found == pytest.approx(3.0, rel=0.1)
  losses = [
    image_scores(logits / t, labels)["nll"].mean() for t in (found, 0.98 * found, 1.02 * found)
  ]
  assert losses[0] == min(losses)


def test_a_temperature_without_an_optimum_is_an_end_of_the_range():
  assert fit_temperature(np.eye(3), np.arange(3)) == TEMPERATURES[0]
  assert fit_temperature(np.eye(3), np.array([1, 2, 0])) == TEMPERATURES[1]
  assert fit_temperature(np.zeros((2, 3)), np.array([0, 1])) == TEMPERATURES[1]


def test_no_bins_and_logits_that_are_not_finite_are_refused():
  with pytest.raises(ConfigError, match="bins=0: expected at least 1"):
    equal_mass_reliability(np.eye(2), np.arange(2), bins=0)
  with pytest.raises(ConfigError, match="logits: not finite for 2 of 2"):
    fit_temperature(np.eye(2) * np.nan, np.arange(2))
