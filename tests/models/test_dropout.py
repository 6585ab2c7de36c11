"""Dropout between the convolutions of residual blocks."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import linen as nn

from jaxkd.models import CifarResNet, WideResNet
from tests.methods.one_step import jit
from tests.models.drawn import drawn

RATE = 0.25
PLAIN = [CifarResNet(1, (4, 4, 4, 4), 3), WideResNet(1, (4, 4, 4, 4), 3)]
IMAGES = np.random.default_rng(0).normal(size=(8, 12, 12, 1)).astype(np.float32)
# The batch norm before the ReLU whose output dropout reads.
BEFORE = {"CifarResNet": "bn1", "WideResNet": "bn2"}


@pytest.fixture(scope="module", params=PLAIN, ids=lambda model: type(model).__name__)
def plain(request):
  return request.param


@pytest.fixture(scope="module")
def variables(plain):
  return drawn(plain, IMAGES)


@pytest.fixture(scope="module")
def trained(plain, variables):
  """Function seed -> stage 1 in training, and the input and output of its dropout."""
  module = plain.clone(dropout=RATE)
  kinds = (nn.Dropout, nn.BatchNorm)

  @jit
  def run(key):
    output, kept = module.apply(
      variables,
      IMAGES,
      train=True,
      rngs={"dropout": key},
      capture_intermediates=lambda part, _: isinstance(part, kinds),
      mutable=["batch_stats", "intermediates"],
      to_stage="stage1",
      method="encode",
    )
    seen = kept["intermediates"]["stage1_0"]
    (before,) = seen[BEFORE[type(plain).__name__]]["__call__"]
    (after,) = seen["Dropout_0"]["__call__"]
    return output.features["stage1"], nn.relu(before), after

  return lambda seed: jax.device_get(run(jax.random.key(seed)))


def test_training_drops_the_given_share_and_keeps_the_mean(trained):
  _, before, after = trained(0)
  alive = before > 0
  dropped = after[alive] == 0
  assert dropped.mean() == pytest.approx(RATE, abs=0.03)
  np.testing.assert_allclose(
    after[alive][~dropped], before[alive][~dropped] / (1 - RATE), rtol=1e-5
  )
  assert after.mean() == pytest.approx(before.mean(), rel=0.05)


def test_dropout_mask_depends_on_the_key_only(trained):
  (features, _, mask), (same, _, _), (others, _, other_mask) = (trained(n) for n in (0, 0, 1))
  np.testing.assert_array_equal(features, same)
  assert not np.allclose(features, others)
  assert np.any((mask == 0) != (other_mask == 0))


def test_every_block_has_dropout(plain, variables):
  @jax.make_jaxpr
  def traced(key):
    rngs = {"dropout": key}
    module = plain.clone(dropout=RATE)
    return module.apply(variables, IMAGES, train=True, rngs=rngs, mutable=["batch_stats"])

  # The stages' maps differ in size, so that the three draws are three separate equations.
  assert str(traced(jax.random.key(0))).count("random_bits[") == 3


def test_evaluation_has_no_dropout(plain, variables):
  def traced(module):
    return str(jax.make_jaxpr(lambda v, x: module.apply(v, x))(variables, IMAGES))

  assert traced(plain.clone(dropout=RATE)) == traced(plain)


def test_dropout_does_not_change_variable_names(plain, variables):
  fresh = jax.eval_shape(plain.clone(dropout=RATE).init, jax.random.key(0), IMAGES)
  assert jax.tree.map(lambda x: x.shape, fresh) == jax.tree.map(lambda x: x.shape, variables)
