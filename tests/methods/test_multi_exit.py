"""One network with several exits that learns from its deeper exits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import losses, methods
from jaxkd.data import training_batches
from jaxkd.errors import ConfigError
from jaxkd.methods import AdaptiveTemperature, of_exits
from jaxkd.models import with_exits
from jaxkd.networks import select
from jaxkd.train import TrainState, training_step
from jaxkd.train.checkpoints import Checkpoints
from tests.methods.one_step import (
  assert_all_moved,
  assert_all_zero,
  jit,
  loss_and_gradients,
  start,
  unprepared,
  updated,
)
from tests.tiny import TinyNet, batch, examples

SHAPE = (6, 6, 1)
PLAIN = TinyNet()
OUTPUT = jax.eval_shape(
  lambda images: PLAIN.init_with_output(jax.random.key(0), images)[0], batch().inputs
)
NETWORK = with_exits(PLAIN, OUTPUT, ("stage1", "stage2"), kind="linear", num_classes=3)
LOSS = of_exits(losses.multi_exit, teachers="later")
SCHEME = methods.multi_exit(
  NETWORK,
  LOSS,
  label_weights=(0.5, 0.5, 1.0),
  weight=2.0,
  temperature=AdaptiveTemperature(start=1.5, confidence=0.2, factor=2.0),
  image_shape=SHAPE,
)


@pytest.fixture(scope="module")
def participants():
  return start(SCHEME)


@pytest.fixture(scope="module")
def differentiated():
  return loss_and_gradients(SCHEME)


@pytest.fixture(scope="module")
def outcome(participants, differentiated):
  return differentiated(participants, batch())


def test_the_scalar_is_the_weighted_sum_over_the_exits(participants, outcome):
  @jit
  def by_hand(variables):
    outputs, _ = NETWORK.apply(variables, batch().inputs, train=True, mutable=["batch_stats"])
    labels = [losses.cross_entropy(output.logits, batch().labels) for output in outputs]
    taught = losses.multi_exit(outputs, teachers="later", temperature=1.5).total
    return 0.5 * labels[0] + 0.5 * labels[1] + labels[2] + 2.0 * taught

  (scalar, aux), _ = outcome
  np.testing.assert_allclose(scalar, by_hand(participants["student"]), rtol=1e-5)
  np.testing.assert_allclose(sum(float(t.total) for t in aux.terms.values()), scalar, rtol=1e-6)


def test_every_parameter_learns(participants):
  after = updated(SCHEME, participants, batch())
  assert_all_moved(participants["student"], after["student"])


def test_the_temperature_rises_in_the_state_after_the_step(participants):
  """Its confidence of 0.2 is always exceeded by a softmax over three classes."""
  after = updated(SCHEME, participants, batch())
  assert participants["temperature"]["adapted"]["temperature"] == np.float32(1.5)
  assert after["temperature"]["adapted"]["temperature"] == np.float32(3.0)
  unsure = AdaptiveTemperature(start=1.5, confidence=1.0, factor=2.0)
  scheme = methods.multi_exit(
    NETWORK, LOSS, label_weights=(1, 1, 1), temperature=unsure, image_shape=SHAPE
  )
  still = updated(scheme, participants, batch())
  assert still["temperature"]["adapted"]["temperature"] == np.float32(1.5)


def test_a_checkpoint_holds_the_temperature(participants, tmp_path):
  optimizer = optax.sgd(0.1, momentum=0.9)
  step = jit(training_step(SCHEME, optimizer, unprepared, axis_name=None))
  state = TrainState(
    jnp.int32(0),
    jax.random.key_data(jax.random.key(0)),
    participants,
    optimizer.init(select(participants, SCHEME.learners)),
  )
  state, _ = step(state, batch())
  iterator = training_batches(examples(), batch_size=8, seed=0)
  progress = {"sums": {}, "rows": [], "best_accuracy": None, "best_epoch": None}
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  checkpoints.save(1, state, state.predicting, progress, iterator)
  checkpoints.wait()
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
  restored = checkpoints.restore(shapes, iterator).state
  checkpoints.close()
  assert restored.participants["temperature"]["adapted"]["temperature"] == np.float32(3.0)
  jax.tree.map(np.testing.assert_array_equal, step(state, batch())[0], step(restored, batch())[0])


def test_unlabelled_images_count_in_the_distillation_alone(participants, differentiated, outcome):
  silent = dataclasses.replace(batch(), weights=jnp.zeros(8))
  (_, aux), gradients = differentiated(participants, silent)
  assert float(aux.terms["labels"].total) == 0.0
  np.testing.assert_array_equal(aux.terms["exits"].total, outcome[0][1].terms["exits"].total)
  # The deepest exit teaches only.
  assert_all_zero(gradients["student"]["params"]["network"]["classifier"])
  assert any(np.any(x) for x in jax.tree.leaves(gradients["student"]["params"]["heads_stage1"]))


def test_without_distillation_every_exit_learns_from_labels_alone(participants):
  scheme = methods.multi_exit(NETWORK, None, label_weights=(1, 1, 1), image_shape=SHAPE)
  student = {"student": participants["student"]}
  (scalar, aux), _ = loss_and_gradients(scheme)(student, batch())
  assert list(aux.terms) == ["labels"]
  np.testing.assert_array_equal(scalar, aux.terms["labels"].total)
  assert set(start(scheme)) == {"student"}


def test_exported_networks_give_the_predictors_logits(participants):
  logits = jit(SCHEME.predict)(participants, batch().inputs)
  networks = SCHEME.export(participants)
  assert set(logits) == set(networks) == {"exit_0", "exit_1", "exit_2", "ensemble"}
  for name, network in networks.items():
    alone = jit(network.module.apply)(network.variables, batch().inputs).logits
    np.testing.assert_allclose(alone, logits[name], atol=1e-5)
  assert isinstance(networks["exit_2"].module, TinyNet)


def test_invalid_arguments_are_refused():
  with pytest.raises(ConfigError, match=r"label_weights is \(1,\): expected 3"):
    methods.multi_exit(NETWORK, None, label_weights=(1,), image_shape=SHAPE)
  for field, value in (("start", 0.0), ("confidence", 1.5), ("factor", 0.9)):
    with pytest.raises(ConfigError, match=field):
      AdaptiveTemperature(**{field: value})
