"""Factor transfer's autoencoder learns to reconstruct a frozen teacher's features."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from jaxkd import methods
from jaxkd.adapters import paraphraser_for
from jaxkd.errors import ConfigError
from jaxkd.networks import select
from tests.methods.one_step import (
  assert_all_moved,
  assert_all_zero,
  assert_same,
  context,
  jit,
  loss_and_gradients,
  start,
)
from tests.tiny import TinyNet, batch

TEACHER = TinyNet()
ENCODER, DECODER = paraphraser_for((8, 3, 3, 8), stage="stage2", batch_norm=True)
SCHEME = methods.autoencoder(TEACHER, ENCODER, DECODER, stage="stage2")


@pytest.fixture(scope="module")
def participants():
  return start(SCHEME)


@pytest.fixture(scope="module")
def differentiated():
  return loss_and_gradients(SCHEME)


@pytest.fixture(scope="module")
def outcome(participants, differentiated):
  """((scalar, Aux), gradients) of the first batch."""
  return differentiated(participants, batch())


def restored(participants, images):
  """(the teacher's features, what the two networks make of them), in training mode."""
  features = TEACHER.apply(participants["teacher"], images, train=False).features["stage2"]
  training = {"train": True, "mutable": ["batch_stats"]}
  factors, _ = ENCODER.apply(participants["paraphraser"], features, **training)
  made, _ = DECODER.apply(participants["decoder"], factors, **training)
  return features, made


def test_the_scalar_is_the_error_of_the_restored_features(participants, outcome):
  squared = methods.autoencoder(TEACHER, ENCODER, DECODER, stage="stage2", loss="mse")

  @jit
  def compute(participants, data):
    learning = select(participants, SCHEME.learners)
    features, made = restored(participants, data.inputs)
    return squared.loss(learning, participants, data, features, context())[0], made - features

  mse, gap = compute(participants, batch())
  (scalar, aux), _ = outcome
  np.testing.assert_allclose(scalar, np.abs(gap).mean(), rtol=1e-5)
  np.testing.assert_allclose(mse, np.square(gap).mean(), rtol=1e-5)
  assert list(aux.terms) == ["reconstruction"]
  np.testing.assert_array_equal(aux.terms["reconstruction"].feature, scalar)
  assert aux.terms["reconstruction"].logit == 0


def test_labels_and_weights_are_not_used(participants, differentiated, outcome):
  data = batch()
  unlabelled = dataclasses.replace(data, labels=0 * data.labels - 1, weights=0 * data.weights)
  assert_same(differentiated(participants, unlabelled), outcome)


def test_the_teacher_gets_no_gradient_and_does_not_change(outcome):
  (_, aux), gradients = outcome
  assert SCHEME.learners == ("paraphraser", "decoder")
  assert "teacher" not in aux.state
  assert_all_zero(gradients["teacher"])


def test_encoder_and_decoder_and_their_statistics_change(participants, outcome):
  (_, aux), gradients = outcome
  for name in SCHEME.learners:
    assert_all_moved(participants[name]["batch_stats"], aux.state[name]["batch_stats"])
    for conv in ("conv1", "conv2", "conv3"):
      assert np.any(gradients[name]["params"][conv]["kernel"])


def test_the_reconstruction_error_falls():
  # As published: without batch normalisation.
  networks = paraphraser_for((8, 6, 6, 4), stage="stage1")
  scheme = methods.autoencoder(TinyNet(norm=False), *networks, stage="stage1", loss="mse")
  optimizer = optax.sgd(0.5, momentum=0.9)

  @jit
  def train():
    participants = scheme.init(jax.random.key(0), batch())
    features = scheme.targets(participants, batch())
    learning = select(participants, scheme.learners)

    def update(carry, _):
      learning, state = carry
      (value, _), gradient = jax.value_and_grad(scheme.loss, has_aux=True)(
        learning, participants, batch(), features, context()
      )
      steps, state = optimizer.update(gradient, state)
      return (optax.apply_updates(learning, steps), state), value

    _, values = jax.lax.scan(update, (learning, optimizer.init(learning)), length=200)
    return values, features

  values, features = (np.asarray(x) for x in train())
  assert values[-1] < values[100] < values[0]
  # Better than the best constant: something of each example went through.
  assert values[-1] < 0.5 * np.square(features - features.mean((0, 1, 2))).mean()


def test_it_predicts_and_exports_nothing(participants):
  assert SCHEME.predict(participants, batch().inputs) == {}
  assert SCHEME.export(participants) == {}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"stage": "stage3"}, "unknown teacher stage 'stage3'.*known: pooled, stage1, stage2"),
    ({"loss": "l2"}, "unknown error 'l2'"),
    ({"decoder": ENCODER}, r"student \(8, 3, 3, 4\) and teacher \(8, 3, 3, 8\)"),
  ],
)
def test_features_of_another_shape_and_unknown_options_are_refused(change, message):
  options = {"encoder": ENCODER, "decoder": DECODER, "stage": "stage2"} | change
  scheme = methods.autoencoder(TEACHER, **options)
  with pytest.raises(ConfigError, match=message):
    participants = jax.eval_shape(scheme.init, jax.random.key(0), batch())
    jax.eval_shape(loss_and_gradients(scheme), participants, batch())
