"""Padding is out of every loss, metric and statistic, for any content and position."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.errors import ConfigError
from jaxkd.methods import Distillation
from jaxkd.types import Output, Terms
from tests.tiny import TinyNet, batch
from tests.train.every_scheme import (
  OFTEN,
  assert_same_update,
  offline,
  schemes_of_means,
  schemes_of_whole_batches,
  some_often,
  start,
  update,
)

REAL = dataclasses.replace(
  batch(5), labels=jnp.array([0, 1, 2, -1, 1]), weights=jnp.array([1.0, 1.0, 0.5, 0.0, 2.0])
)
# Positions of real examples among the padding, so that devices and parts hold different numbers.
POSITIONS = np.array([0, 1, 3, 4, 6])
# Statistics over other numbers of rows round differently; RKD's weights of 25 and 50 enlarge this.
LOOSE = {"rtol": 5e-4, "atol": 2e-5}


def padded(fill):
  """The real examples in a batch of eight."""

  def spread(x):
    whole = np.full((8, *x.shape[1:]), fill if np.issubdtype(x.dtype, np.floating) else -7, x.dtype)
    whole[POSITIONS] = x
    return jnp.asarray(whole)

  mask = np.zeros(8, bool)
  mask[POSITIONS] = True
  data = jax.tree.map(lambda x: spread(np.asarray(x)), REAL)
  return dataclasses.replace(data, mask=jnp.asarray(mask))


@pytest.mark.parametrize("name", some_often(schemes_of_means(True)))
def test_padding_changes_nothing_on_one_device_or_four(name):
  compare_with_padding(schemes_of_means(True)[name], name in OFTEN)


@pytest.mark.long
@pytest.mark.parametrize("name", some_often(schemes_of_whole_batches(True)))
def test_padding_changes_nothing_where_examples_are_compared(name):
  compare_with_padding(schemes_of_whole_batches(True)[name], name in OFTEN)


def compare_with_padding(scheme, often):
  participants = start(scheme)
  expected = update(scheme, participants, REAL)
  # Every program takes seconds to compile, and that of four devices has all that one has.
  for fill, devices in ((np.nan, 4), (1e30, 1 if often else 4)):
    actual = update(scheme, participants, padded(fill), devices=devices)
    assert_same_update(actual, expected, **LOOSE)


@pytest.mark.long
@pytest.mark.parametrize("name", some_often(schemes_of_means(False)))
def test_padding_changes_nothing_in_parts(name):
  scheme = schemes_of_means(False)[name]
  participants = start(scheme)
  expected = update(scheme, participants, REAL)
  actual = update(scheme, participants, padded(np.nan), parts=2, devices=2)
  assert_same_update(actual, expected, **LOOSE)


def test_a_batch_of_padding_alone_changes_nothing():
  scheme = schemes_of_means(True)["logits"]
  participants = start(scheme)
  data = dataclasses.replace(padded(np.nan), mask=jnp.zeros(8, bool))
  after, metrics = update(scheme, participants, data)
  chex.assert_trees_all_close(after, jax.tree.map(np.asarray, participants))
  assert metrics["loss"][0] == 0


def test_a_loss_that_cannot_mask_padding_is_refused_in_one_line():
  def blind(student, teacher, batch, context):
    return Terms(logit=jnp.mean(student.logits))

  scheme = offline(functools.partial(TinyNet, norm=False), Distillation("mine", blind))
  with pytest.raises(ConfigError, match=r"distillation 'mine' does not read it"):
    update(scheme, start(scheme), padded(0.0))


def test_the_divergence_of_two_real_rows_is_the_same_with_padding():
  rng = np.random.default_rng(0)
  student, teacher = (rng.normal(size=(4, 5)).astype("float32") * 3 for _ in range(2))
  student[2:], teacher[2:] = 1e3 * student[2:], -1e3 * teacher[2:]
  where = jnp.array([1, 1, 0, 0])
  whole = losses.knowledge_distillation(Output(student), Output(teacher), where=where)
  real = losses.knowledge_distillation(Output(student[:2]), Output(teacher[:2]))
  np.testing.assert_allclose(whole.logit, real.logit, rtol=1e-6)
