"""Dropout from the config to the step: the networks and steps on which it acts."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxkd import losses, methods, models
from jaxkd.adapters import Gate, Projector
from jaxkd.data import Dataset
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config, networks
from jaxkd.methods import Distillation, of_exits, per_example
from jaxkd.methods._gradients import learn_with_gradients
from jaxkd.networks import learn, select
from jaxkd.runtime import mapping
from jaxkd.train import create_state, training_step
from jaxkd.types import Context, Output
from tests.methods.one_step import jit, unprepared
from tests.models.drawn import drawn
from tests.tiny import TinyNet, batch, examples

DATA = Dataset("digits", examples(), examples(), examples(), 3, (6, 6, 1), (0.5,), (0.5,))
SHAPE = DATA.image_shape


class Dropping(TinyNet):
  """Drops half of both stages' preactivations."""

  def setup(self):
    super().setup()
    self.dropout = nn.Dropout(0.5)

  def _layer(self, number, x, train):
    return self.dropout(super()._layer(number, x, train), deterministic=not train)


STUDENT, TEACHER = Dropping(), Dropping(width=6)
GRADIENTS = Distillation(
  "gradients",
  per_example(losses.gradient_attention_transfer, stages=("stage1",)),
  gradients=(("stage1",), ("stage1",)),
)
ON_STAGE2 = {"image_shape": SHAPE, "stages": ("stage2", "stage2")}
SCHEMES = {
  "supervised": methods.supervised(STUDENT),
  "first stage": methods.offline(
    STUDENT,
    {"teacher": STUDENT},
    [Distillation("at", per_example(losses.attention_transfer, stages=("stage1",)))],
    label_weight=0.0,
    to_stage="stage1",
    image_shape=SHAPE,
  ),
  "gradients": methods.offline(STUDENT, {"teacher": STUDENT}, [GRADIENTS]),
  "simkd": methods.simkd(STUDENT, TEACHER, Projector(size=(3, 3), channels=12), **ON_STAGE2),
  "fresh classifier": methods.fresh_classifier(STUDENT, image_shape=SHAPE, from_stage="stage1"),
  "mutual": methods.mutual({"a": STUDENT, "b": TEACHER}, updates="alternating"),
  "native ensemble": methods.native_ensemble(STUDENT, Gate(2), branches=2, from_stage="stage1"),
  "exits": methods.multi_exit(
    models.MultiExit(STUDENT, {"stage1": models.LinearExit(3)}, hint_stage="pooled"),
    of_exits(losses.multi_exit),
    label_weights=(1.0, 1.0),
    image_shape=SHAPE,
  ),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_dropout_acts_on_learners_alone(name):
  """Count the random numbers that each part of a scheme draws, by tracing alone."""
  scheme, data = SCHEMES[name], batch()
  participants = jax.eval_shape(scheme.init, jax.random.key(0), data)
  traced, targets = jax.make_jaxpr(scheme.targets, return_shape=True)(participants, data)

  @jax.make_jaxpr
  def loss(participants, targets, key):
    learning = select(participants, scheme.learners)
    return scheme.loss(learning, participants, data, targets, Context(key, jnp.int32(0)))[0]

  assert "random_bits" in str(loss(participants, targets, jax.random.key(0)))
  assert "random_bits" not in str(traced)
  assert "random_bits" not in str(jax.make_jaxpr(scheme.predict)(participants, data.inputs))


def test_gradients_at_stages_are_of_the_same_dropped_network():
  data = batch()
  variables = drawn(STUDENT, data.inputs)

  @jit
  def both(key):
    plain, _ = learn(STUDENT, variables, data.inputs, key)
    entered, _ = learn_with_gradients(
      STUDENT, variables, data.inputs, data.labels, None, ("stage1",), key
    )
    return plain, entered

  plain, entered = both(jax.random.key(0))
  np.testing.assert_allclose(plain.logits, entered.logits, rtol=1e-5)
  # What stage 1 drops has no ReLU behind it that would let it through.
  dropped = plain.preactivations["stage1"] == 0
  assert 0.3 < dropped.mean() < 0.7
  np.testing.assert_array_equal(dropped, entered.preactivations["stage1"] == 0)


class Mask(nn.Module):
  """Keeps what dropout leaves of ones, where the step averages it over the devices."""

  @nn.compact
  def __call__(self, images, train=False):
    kept = nn.Dropout(0.5, deterministic=not train)(jnp.ones(64))
    mask = self.variable("batch_stats", "mask", lambda: jnp.ones(64))
    if train:
      mask.value = kept
    return Output(nn.Dense(3)(images.reshape(len(images), -1)))


def test_dropout_masks_differ_between_devices_and_steps():
  scheme, optimizer = methods.supervised(Mask()), optax.sgd(0.1)
  chosen = jax.local_devices()[:2]
  step = mapping.map_training_step(
    training_step(scheme, optimizer, unprepared, axis_name=mapping.AXIS_NAME), chosen
  )
  state = mapping.replicate(
    create_state(scheme, optimizer, jax.random.key(0), batch(), average=False), chosen
  )
  masks = []
  for _ in range(2):
    state, _ = step(state, mapping.shard(jax.tree.map(np.asarray, batch()), chosen))
    masks.append(np.asarray(state.participants["student"]["batch_stats"]["mask"]))
  for mean in masks:
    # 2 where both keep and 0 where both drop; 1 where only one of them does.
    assert set(mean.tolist()) == {0, 1, 2}
    assert 16 < np.sum(mean == 1) < 48
  assert np.sum(masks[0] != masks[1]) > 16


def test_the_error_for_a_model_without_dropout_names_those_that_have_it():
  with pytest.raises(ConfigError) as caught:
    networks.create("student.model", "mlp", DATA, {}, dropout=0.5)
  message = str(caught.value)
  start = "student.dropout=0.5: expected 0.0, as student.model='mlp' has no dropout; these have: "
  assert message.startswith(start)
  able = re.split(", ", message.removeprefix(start))
  assert {"resnet8_w4", "resnet8_w4_s2", "resnet32x4", "wrn_16_2"} <= set(able)
  assert not {"mlp", "vgg8", "imagenet_resnet18", "msdnet"} & set(able)


@pytest.mark.parametrize(("role", "method"), [("teacher", "teacher"), ("student", "alone")])
def test_each_section_of_the_config_has_its_own_dropout(monkeypatch, role, method):
  settings = config.base_config(method)
  settings.update({"teacher": {"dropout": 0.1}, "student": {"dropout": 0.2}})
  asked = {}

  def create(field, name, data, options, *, dropout=0.0):
    asked[field] = dropout
    return TinyNet(), Output(logits=jnp.ones((2, 3)))

  monkeypatch.setattr(networks, "create", create)
  build.phases(settings, DATA)
  assert asked == {f"{role}.model": settings[role].dropout}


def test_dropout_reaches_the_model_and_0_accepts_any_model():
  module, _ = networks.create("student.model", "resnet8_w4", DATA, {}, dropout=0.3)
  assert module == models.create("resnet8_w4", num_classes=3, dropout=0.3)
  assert networks.create("student.model", "mlp", DATA, {})[0] == models.create("mlp", num_classes=3)
