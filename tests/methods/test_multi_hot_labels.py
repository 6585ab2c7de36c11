"""Schemes of classes that exclude each other refuse multi-hot labels when they are traced."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxkd.errors import ConfigError
from jaxkd.networks import select
from jaxkd.types import Context
from tests.tiny import batch
from tests.train.every_scheme import schemes_of_means, schemes_of_whole_batches

BATCH = dataclasses.replace(
  batch(8), labels=jnp.float32(jnp.arange(24).reshape(8, 3) % 5 % 2), multi_label=True
)
TAKE_THEM = {"supervised", "features", "sequential", "simkd", "rkd", "sp"}
REFUSE = {
  "labelled logits": "decoupled distillation",
  "mutual": "mutual learning",
  "alternating": "mutual learning",
  "native ensemble": "a native ensemble",
  "multi exit": "several exits",
  "own teacher": "several exits",
  "gradients": "gradients of the cross-entropy",
}
SCHEMES = {**schemes_of_means(False), **schemes_of_whole_batches(False)}


def trace(scheme):
  def objective(rng, batch):
    everyone = scheme.init(rng, batch)
    targets = scheme.targets(everyone, batch)
    learning = select(everyone, scheme.learners)
    return scheme.loss(learning, everyone, batch, targets, Context(rng, jnp.int32(0)))[0]

  return jax.eval_shape(objective, jax.random.key(0), BATCH)


@pytest.mark.parametrize("name", sorted(TAKE_THEM))
def test_a_scheme_that_compares_no_softmax_takes_them(name):
  assert trace(SCHEMES[name]).shape == ()


@pytest.mark.parametrize("name", sorted(REFUSE))
def test_a_scheme_of_exclusive_classes_refuses_them(name):
  with pytest.raises(
    ConfigError, match=f"multi_label=True: expected .* with {REFUSE[name]}, whose"
  ):
    trace(SCHEMES[name])
