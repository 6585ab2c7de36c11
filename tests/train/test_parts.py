"""Parts of a batch, over devices or in sequence, give the update of the whole batch."""

import dataclasses
import functools

import jax.numpy as jnp
import pytest

from jaxkd.errors import ConfigError
from jaxkd.methods import Distillation
from jaxkd.methods._soft_targets import soft_targets
from tests.tiny import TinyNet, batch
from tests.train.every_scheme import (
  AXIS,
  OFTEN,
  assert_same_update,
  offline,
  schemes_of_means,
  schemes_of_whole_batches,
  some_often,
  start,
  update,
)

LABELS = jnp.array([0, 1, 2, -1, -1, -1, -1, 0])
WEIGHTS = jnp.array([1.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 2.0])
UNEVEN = dataclasses.replace(batch(8), labels=LABELS, weights=WEIGHTS)


@pytest.mark.parametrize("name", some_often(schemes_of_means(False)))
def test_parts_with_unequal_labels_give_the_update_of_the_whole_batch(name):
  scheme = schemes_of_means(False)[name]
  participants = start(scheme)
  expected = update(scheme, participants, UNEVEN)
  # Every program takes seconds to compile; the second has parts and devices.
  for parts, devices in ((4, 1), (2, 2)) if name in OFTEN else ((2, 2),):
    assert_same_update(update(scheme, participants, UNEVEN, parts=parts, devices=devices), expected)


def test_parts_of_one_example_and_of_class_probabilities_give_the_update_of_the_whole_batch():
  scheme = schemes_of_means(False)["supervised"]
  participants = start(scheme)
  soft = jnp.eye(3)[jnp.maximum(LABELS, 0)] * 0.7 + 0.1
  for data in (UNEVEN, dataclasses.replace(UNEVEN, labels=soft)):
    expected = update(scheme, participants, data)
    assert_same_update(update(scheme, participants, data, parts=8), expected)
    assert_same_update(update(scheme, participants, data, parts=4, devices=0), expected)


@pytest.mark.long
@pytest.mark.parametrize("masked", [False, True])
def test_parts_of_multi_hot_labels_give_the_update_of_the_whole_batch(masked):
  net = functools.partial(TinyNet, norm=False, axis_name=AXIS)
  scheme = offline(net, Distillation("kd", soft_targets(temperature=2.0), 0.9))
  labels = jnp.arange(24).reshape(8, 3) % 5 % 2
  weights = jnp.broadcast_to(WEIGHTS[:, None], (8, 3)).at[0, 1].set(0.0)
  mask = jnp.array([1, 1, 0, 1, 1, 0, 0, 1]) if masked else None
  data = dataclasses.replace(
    UNEVEN, labels=jnp.float32(labels), weights=weights, mask=mask, multi_label=True
  )
  participants = start(scheme)
  expected = update(scheme, participants, data)
  for parts, devices in ((1, 8), (2, 2), (8, 0)):
    assert_same_update(update(scheme, participants, data, parts=parts, devices=devices), expected)


@pytest.mark.parametrize("name", schemes_of_whole_batches(False))
def test_a_loss_that_compares_examples_is_refused_on_parts_in_one_line(name):
  scheme = schemes_of_whole_batches(False)[name]
  participants = start(scheme)
  with pytest.raises(ConfigError, match=r"^accumulate=2: expected 1 with "):
    update(scheme, participants, UNEVEN, parts=2)


def test_parts_that_do_not_divide_the_batch_are_refused_in_one_line():
  scheme = schemes_of_means(False)["supervised"]
  with pytest.raises(ConfigError, match=r"^accumulate=3: expected a divisor of the 8 examples"):
    update(scheme, start(scheme), UNEVEN, parts=3)
