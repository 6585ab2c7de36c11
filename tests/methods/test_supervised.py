"""A network that learns from labels alone."""

import dataclasses

import numpy as np
import pytest

from jaxkd import losses, methods
from tests.methods.one_step import (
  assert_all_moved,
  assert_same,
  context,
  jit,
  loss_and_gradients,
  start,
  updated,
)
from tests.tiny import TinyNet, batch

SCHEME = methods.supervised(TinyNet(), participant="teacher", label_smoothing=0.1)


@pytest.fixture(scope="module")
def participants():
  return start(SCHEME)


def test_the_scalar_is_the_smoothed_cross_entropy_of_its_one_term(participants):
  data = batch()

  @jit
  def logits_of(variables):
    output, _ = TinyNet().apply(variables, data.inputs, train=True, mutable=["batch_stats"])
    return output.logits

  (scalar, aux), _ = loss_and_gradients(SCHEME)(participants, data)
  logits = logits_of(participants["teacher"])
  expected = losses.cross_entropy(logits, data.labels, label_smoothing=0.1)
  np.testing.assert_allclose(scalar, expected, rtol=1e-5)
  assert list(aux.terms) == ["labels"]
  np.testing.assert_array_equal(aux.terms["labels"].total, scalar)
  correct, count = aux.metrics["accuracy"]
  assert correct == np.sum(np.argmax(logits, -1) == data.labels)
  assert count == 8


def test_an_unlabelled_example_does_not_count(participants):
  data = batch()
  learning = {"teacher": participants["teacher"]["params"]}
  loss = jit(lambda given: SCHEME.loss(learning, participants, given, None, context()))
  weights = data.weights.at[3].set(0.0)
  scalar, aux = loss(dataclasses.replace(data, weights=weights))
  relabelled = dataclasses.replace(data, weights=weights, labels=data.labels.at[3].set(-1))
  assert_same(loss(relabelled), (scalar, aux))
  assert aux.metrics["accuracy"][1] == 7
  assert not np.allclose(scalar, loss(data)[0])


def test_every_parameter_changes_in_one_update(participants):
  after = updated(SCHEME, participants, batch())
  assert list(after) == ["teacher"]
  assert_all_moved(participants["teacher"]["batch_stats"], after["teacher"]["batch_stats"])
  assert_all_moved(
    participants["teacher"]["params"]["classifier"], after["teacher"]["params"]["classifier"]
  )


def test_predictor_and_exported_network_have_the_participants_name(participants):
  data = batch()
  predicted = jit(SCHEME.predict)(participants, data.inputs)
  exported = SCHEME.export(participants)
  assert list(predicted) == list(exported) == ["teacher"]
  network = exported["teacher"]
  logits = jit(network.module.apply)(network.variables, data.inputs).logits
  np.testing.assert_array_equal(logits, predicted["teacher"])
