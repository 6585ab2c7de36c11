"""Views that both networks see: outputs, batch statistics, and what is refused."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from jaxkd import methods
from jaxkd.errors import ConfigError
from jaxkd.losses import soft_target_kl
from jaxkd.methods import Distillation, Table
from jaxkd.networks import infer, learn, update
from jaxkd.types import Terms
from tests.methods.one_step import assert_same, jit, loss_and_gradients, start, updated
from tests.tiny import TinyNet, batch

STUDENT, TEACHER = TinyNet(), TinyNet(width=6)
BATCH = dataclasses.replace(batch(), views={"strong": -batch().inputs})


def compare(student, teacher, batch, context):
  value = soft_target_kl(student["strong"].logits, teacher["strong"].logits, where=batch.mask)
  return Terms(logit=value + 0.0 * student[""].logits.sum())


OF_VIEWS = Distillation("of_views", compare, views=("strong",))
SCHEME = methods.offline(STUDENT, {"teacher": TEACHER}, [OF_VIEWS])


@jit
def both_in_turn(variables):
  """The student's logits of the view, and its statistics after the inputs and the view."""
  key = jax.random.key(0)
  _, changes = learn(STUDENT, variables, BATCH.inputs, key)
  moved = update(variables, changes)
  output, after = learn(STUDENT, moved, BATCH.views["strong"], key)
  return output.logits, update(changes, after)


def test_loss_compares_the_networks_on_the_view_and_statistics_move_twice():
  everyone = start(SCHEME, data=BATCH)
  (_, aux), gradients = loss_and_gradients(SCHEME)(everyone, BATCH)
  logits, changes = both_in_turn(everyone["student"])
  theirs = infer(TEACHER, everyone["teacher"], BATCH.views["strong"]).logits
  np.testing.assert_allclose(aux.terms["of_views"].logit, soft_target_kl(logits, theirs), rtol=1e-4)
  after = updated(SCHEME, everyone, BATCH)
  for found, wanted in zip(
    jax.tree.leaves(after["student"]["batch_stats"]),
    jax.tree.leaves(changes["batch_stats"]),
    strict=True,
  ):
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
  assert_same(after["teacher"], everyone["teacher"])
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients["teacher"]))


def test_views_that_cannot_be_computed_are_refused_by_name():
  with pytest.raises(ConfigError, match=r"batch.views=\[\]: expected 'strong' among them"):
    start_and_trace(batch())
  table = Table(np.zeros((8, 3), "float32"))
  with pytest.raises(
    ConfigError, match=r"'of_views' compares the views \('strong',\) of 'teacher'"
  ):
    methods.offline(STUDENT, {"teacher": table}, [OF_VIEWS])
  gradients = dataclasses.replace(OF_VIEWS, gradients=(("images",), ()))
  with pytest.raises(ConfigError, match="expected none with an adapter or with gradients"):
    methods.offline(STUDENT, {"teacher": TEACHER}, [gradients])
  with pytest.raises(ConfigError, match="expected none with to_stage or from_stage"):
    methods.offline(
      STUDENT,
      {"teacher": TEACHER},
      [OF_VIEWS],
      label_weight=0.0,
      to_stage="stage1",
      image_shape=(8, 8, 1),
    )


def start_and_trace(data):
  everyone = jax.eval_shape(SCHEME.init, jax.random.key(0), data)
  jax.eval_shape(SCHEME.targets, everyone, data)
