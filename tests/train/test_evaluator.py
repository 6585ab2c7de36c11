"""Scores of a whole split, of any length."""

import jax
import numpy as np
import optax
import pytest

from jaxkd import methods
from jaxkd.evaluate.multi_label import MEAN_AVERAGE_PRECISION
from jaxkd.runtime import mapping
from jaxkd.train import create_state
from jaxkd.train.evaluate import _means, is_better, main_metric, make_evaluator
from tests.tiny import TinyNet, batch, examples, phase


@pytest.fixture(scope="module")
def participants():
  scheme = methods.supervised(TinyNet())
  state = create_state(scheme, optax.sgd(0.1), jax.random.key(0), batch())
  return mapping.host_copy(state.participants)


def test_ragged_splits_neither_compile_twice_nor_bias_a_score(participants):
  """9 and 5 examples in batches of 8: one compilation, and the means that numpy finds."""
  traces = []
  scheme = methods.supervised(TinyNet())

  def predict(everyone, images):
    traces.append(images.shape)
    return scheme.predict(everyone, images)

  evaluate = make_evaluator(phase(scheme=scheme._replace(predict=predict)), jax.local_devices()[:2])
  for count in (9, 5):
    data = examples(count, seed=count)
    images = (data.fetch(np.arange(count)).astype(np.float32) / 255 - 0.5) / 0.5
    logits = np.asarray(TinyNet().apply(participants["student"], images).logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    scores = evaluate(participants, data)["student"]
    assert scores["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == data.labels))
    expected = -log_p[np.arange(count), data.labels].mean()
    assert scores["cross_entropy"] == pytest.approx(expected, rel=1e-4)
  # Four times the batch of a step, by two devices.
  assert traces == [(16, 6, 6, 1)]


def multi_hot_means(logits, labels):
  arrays = np.stack([logits, labels, np.ones((2, 2))]).astype(np.float32)
  return _means([{"accuracy": (3.0, 4.0), MEAN_AVERAGE_PRECISION: arrays}])


def test_a_network_whose_scores_are_nan_is_not_compared_by_its_accuracy():
  found = multi_hot_means([[np.nan, 0], [1, 2]], np.eye(2))
  assert np.isnan(found[MEAN_AVERAGE_PRECISION]) and found["accuracy"] == 0.75
  assert not is_better(found, None) and not is_better(found, 0.5)
  assert is_better(multi_hot_means(np.eye(2), np.eye(2)), 0.5)
  without = multi_hot_means(np.eye(2), np.zeros((2, 2)))
  assert main_metric(without) == "accuracy" and set(without) == {"accuracy"}
