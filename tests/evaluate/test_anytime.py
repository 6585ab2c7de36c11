import dataclasses

import jax
import numpy as np
import pytest

from jaxkd.data import ArrayExamples, evaluation_batches
from jaxkd.errors import ConfigError
from jaxkd.evaluate import anytime_at, anytime_curve, exit_logits
from jaxkd.types import Batch
from tests.evaluate.blocks import EXITS, SHAPE, Blocks, variables


def prepare(batch):
  return dataclasses.replace(batch, inputs=batch.inputs.astype("float32") / 128 - 1)


@pytest.fixture(scope="module")
def split():
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (10, *SHAPE), dtype=np.uint8)
  return ArrayExamples(pixels, np.arange(10, dtype=np.int32) % 3, np.arange(10, dtype=np.int32))


def test_exit_logits_are_the_models_in_order_without_padding(split):
  weights = variables()
  logits, labels = exit_logits(Blocks(), weights, evaluation_batches(split, batch_size=4), prepare)
  batch = prepare(Batch(split.images, split.labels, None, None))
  expected = jax.jit(Blocks().apply)(weights, batch.inputs)
  assert logits.shape == (10, EXITS, 3)
  assert logits.dtype == np.float32
  np.testing.assert_array_equal(labels, split.labels)
  for number, output in enumerate(expected):
    np.testing.assert_allclose(logits[:, number], output.logits, atol=1e-5)


def test_model_is_compiled_once_per_split(split):
  shapes = []

  def watched(batch):
    shapes.append(batch.inputs.shape)
    return prepare(batch)

  exit_logits(Blocks(), variables(), evaluation_batches(split, batch_size=4), watched)
  assert shapes == [(4, *SHAPE)]


def test_missing_batches_are_refused():
  with pytest.raises(ConfigError, match="batches"):
    exit_logits(Blocks(), variables(), [], prepare)


def test_curve_has_accuracies_of_each_exit_and_of_mean_probabilities():
  # Exit 0 is right for the first of two images, exit 1 for the second, exit 2 for none. The first
  # exit is confident, so it decides the ensemble of exits 0 and 1.
  probabilities = np.array(
    [[[0.9, 0.1], [0.3, 0.7], [0.4, 0.6]], [[0.9, 0.1], [0.3, 0.7], [0.9, 0.1]]]
  )
  rows = anytime_curve(np.log(probabilities), np.array([0, 1]), [10, 20, 30])
  assert [row["exit"] for row in rows] == [0, 1, 2]
  assert [row["multiply_adds"] for row in rows] == [10, 20, 30]
  assert [row["accuracy"] for row in rows] == [0.5, 0.5, 0.0]
  assert [row["ensemble_accuracy"] for row in rows] == [0.5, 0.5, 0.5]


def test_ensemble_averages_probabilities_not_logits():
  # The mean logits prefer class 1, the mean probabilities class 0.
  logits = np.array([[[3.0, 0.0], [0.0, 9.0], [3.0, 0.0]]])
  assert anytime_curve(logits, np.array([0]), [1, 2, 3])[-1]["ensemble_accuracy"] == 1.0


def test_huge_logits_give_finite_probabilities():
  rows = anytime_curve(np.array([[[1e4, -1e4], [1e4, 0.0]]]), np.array([0]), [1, 2])
  assert rows[1]["ensemble_accuracy"] == 1.0


@pytest.mark.parametrize(
  ("logits", "labels", "named"),
  [
    (np.zeros((2, 3, 4)), np.zeros(2), "logits"),
    (np.zeros((0, 2, 4)), np.zeros(0), "logits"),
    (np.zeros((2, 2, 4)), np.zeros(3), "labels"),
  ],
)
def test_errors_name_sizes_that_do_not_fit(logits, labels, named):
  with pytest.raises(ConfigError, match=f"^{named}: "):
    anytime_curve(logits, labels, [1, 2])


def test_accuracy_between_exits_is_that_of_a_random_mixture():
  costs, accuracies = [100, 300, 400], [0.5, 0.7, 0.6]
  assert [anytime_at(costs, accuracies, cost) for cost in costs] == accuracies
  # A quarter of the images go on to the second exit: 0.75 * 100 + 0.25 * 300.
  assert anytime_at(costs, accuracies, 150) == pytest.approx(0.75 * 0.5 + 0.25 * 0.7)
  assert anytime_at(costs, accuracies, 350) == pytest.approx(0.65)
  assert anytime_at([7], [0.5], 7) == 0.5


@pytest.mark.parametrize(
  ("costs", "accuracies", "cost", "message"),
  [
    ([1, 2], [0.5, 0.6], 0.9, "^cost=0.9: expected 1 to 2"),
    ([1, 2], [0.5, 0.6], 2.1, "^cost=2.1: expected 1 to 2"),
    ([1, 2], [0.5, 0.6], float("nan"), "^cost=nan"),
    ([2, 1], [0.5, 0.6], 1.5, "^costs: expected one or more rising"),
    ([1, 2], [0.5], 1.5, "^accuracies: 1, expected 2"),
  ],
)
def test_cost_outside_the_range_of_the_exits_is_refused(costs, accuracies, cost, message):
  with pytest.raises(ConfigError, match=message):
    anytime_at(costs, accuracies, cost)
