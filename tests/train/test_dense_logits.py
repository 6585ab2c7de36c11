"""Logits of every token and of every pixel: losses, accuracy, masks and parts of a batch."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxkd import losses, methods
from jaxkd.methods import Distillation, per_example
from jaxkd.train import evaluation_step
from jaxkd.types import Batch, Output
from tests.train.every_scheme import update

CLASSES = 3


class Tagger(nn.Module):
  """(B, T) tokens -> logits (B, T, V)."""

  width: int = 4

  @nn.compact
  def __call__(self, images, train=False):
    x = nn.Embed(5, self.width)(images)
    return Output(logits=nn.Dense(CLASSES)(nn.tanh(x)), features={"pooled": x.mean(1)})


class Segmenter(nn.Module):
  """(B, H, W, 1) images -> logits (B, H, W, V)."""

  width: int = 4

  @nn.compact
  def __call__(self, images, train=False):
    x = nn.tanh(nn.Conv(self.width, (3, 3))(images))
    return Output(logits=nn.Conv(CLASSES, (1, 1))(x), features={"pooled": x.mean((1, 2))})


def tokens(size):
  rng = np.random.default_rng(0)
  return rng.integers(0, 5, (size, 6)).astype("int32"), (size, 6)


def pixels(size):
  rng = np.random.default_rng(0)
  return rng.normal(size=(size, 4, 5, 1)).astype("float32"), (size, 4, 5)


def dense_batch(draw, size=8):
  inputs, leading = draw(size)
  labels = np.random.default_rng(1).integers(0, CLASSES, leading).astype("int32")
  weights = np.array([1, 1, 0, 2, 0, 0, 1, 1], "float32")[:size]
  return Batch(inputs, labels, weights, np.arange(size, dtype="int32"))


KINDS = {"tokens": (Tagger, tokens), "pixels": (Segmenter, pixels)}
each_kind = pytest.mark.parametrize(
  "kind", ["tokens", pytest.param("pixels", marks=pytest.mark.long)]
)


def taught(network, label_weight):
  return methods.offline(
    network(),
    {"teacher": network(6)},
    [Distillation("kd", per_example(losses.knowledge_distillation))],
    label_weight=label_weight,
  )


def begin(scheme, data):
  return jax.jit(scheme.init)(jax.random.key(0), data)


@each_kind
@pytest.mark.parametrize("label_weight", [0.0, 1.0])
def test_dense_students_learn_and_are_scored_in_any_division_of_the_batch(kind, label_weight):
  network, draw = KINDS[kind]
  scheme, data = taught(network, label_weight), dense_batch(draw)
  participants = begin(scheme, data)
  expected = update(scheme, participants, data)
  positions = data.labels[0].size
  assert expected[1]["accuracy"][1] == data.weights.sum() * positions
  actual = update(scheme, participants, data, parts=2, devices=2)
  chex.assert_trees_all_close(actual[0], expected[0], rtol=1e-4, atol=1e-6)


@each_kind
def test_padding_of_positions_is_out_of_loss_and_accuracy(kind):
  network, draw = KINDS[kind]
  scheme, data = taught(network, 1.0), dense_batch(draw)
  participants = begin(scheme, data)
  mask = np.random.default_rng(2).random(data.labels.shape) < 0.6
  masked = dataclasses.replace(data, mask=mask)
  expected = update(scheme, participants, masked)
  # Labels of padding may be anything.
  wrong = dataclasses.replace(masked, labels=np.where(mask, data.labels, 77).astype("int32"))
  for other, parts, devices in ((wrong, 1, 1), (masked, 2, 4)):
    actual = update(scheme, participants, other, parts=parts, devices=devices)
    chex.assert_trees_all_close(actual[0], expected[0], rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(actual[1]["accuracy"], expected[1]["accuracy"])
  counted = (mask * data.weights.reshape(-1, *(1,) * (mask.ndim - 1))).sum()
  np.testing.assert_allclose(expected[1]["accuracy"][1], counted)


@each_kind
def test_peers_and_the_student_alone_take_dense_logits(kind):
  network, draw = KINDS[kind]
  data = dense_batch(draw)
  for scheme in (methods.supervised(network()), methods.mutual({"a": network(), "b": network(3)})):
    participants = begin(scheme, data)
    _, metrics = update(scheme, participants, data)
    assert np.isfinite(metrics["loss"][0])
    scores = evaluation_step(scheme.predict, lambda batch: batch, axis_name=None)
    found = scores(participants, jax.tree.map(jnp.asarray, data))
    assert all(0 <= s["accuracy"][0] <= s["accuracy"][1] for s in found.values())
