"""A newly initialised classifier learns on a frozen encoder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import losses, methods
from jaxkd.adapters import Projector
from jaxkd.errors import ConfigError
from jaxkd.networks import select
from tests.methods.one_step import (
  assert_all_moved,
  assert_all_zero,
  assert_same,
  jit,
  loss_and_gradients,
  updated,
)
from tests.models.drawn import drawn
from tests.tiny import TinyNet, batch

STUDENT, TEACHER, SHAPE = TinyNet(), TinyNet(width=6), (6, 6, 1)
DECAYING = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1))
SCHEME = methods.fresh_classifier(
  STUDENT, TEACHER, image_shape=SHAPE, label_weight=0.5, kd_weight=0.3, temperature=2.0
)


@pytest.fixture(scope="module")
def participants():
  return drawn(SCHEME, batch())


def test_only_the_classifier_changes(participants):
  assert SCHEME.learners == ("student/classifier",)
  after = updated(SCHEME, participants, batch(), optimizer=DECAYING)
  assert_same(participants["teacher"], after["teacher"])
  assert_same(participants["student"]["batch_stats"], after["student"]["batch_stats"])
  before, after = participants["student"]["params"], after["student"]["params"]
  assert_all_moved(before["classifier"], after["classifier"])
  rest = [name for name in before if name != "classifier"]
  assert_same([before[name] for name in rest], [after[name] for name in rest])


def test_the_objective_is_that_of_the_network_in_evaluation_mode(participants):
  (scalar, aux), gradients = loss_and_gradients(SCHEME)(participants, batch())

  @jit
  def by_hand(participants):
    student = STUDENT.apply(participants["student"], batch().inputs, train=False)
    teacher = TEACHER.apply(participants["teacher"], batch().inputs, train=False)
    kd = losses.soft_target_kl(student.logits, teacher.logits, temperature=2.0)
    accuracy = jnp.sum(student.logits.argmax(-1) == batch().labels)
    return losses.cross_entropy(student.logits, batch().labels), kd, accuracy

  labels, kd, right = by_hand(participants)
  np.testing.assert_allclose(aux.terms["labels"].total, 0.5 * labels, rtol=1e-5)
  np.testing.assert_allclose(aux.terms["kd"].total, 0.3 * kd, rtol=1e-5)
  np.testing.assert_allclose(scalar, 0.5 * labels + 0.3 * kd, rtol=1e-5)
  assert float(aux.metrics["accuracy"][0]) == float(right)
  # Nothing of the encoder's state is pooled over devices or written back.
  assert aux.state == {"student": {}}
  assert_all_zero(gradients["teacher"])
  assert np.any(gradients["student"]["params"]["classifier"]["kernel"])


def test_the_exported_student_is_the_whole_network(participants):
  network = SCHEME.export(participants)["student"]
  assert network.variables is participants["student"]
  predicted = jit(SCHEME.predict)(participants, batch().inputs)
  logits = jit(network.module.apply)(network.variables, batch().inputs).logits
  assert_same(predicted, {"student": logits})


def test_all_layers_after_from_stage_learn(participants):
  scheme = methods.fresh_classifier(STUDENT, image_shape=SHAPE, from_stage="stage1")
  assert scheme.learners == tuple(f"student/{name}" for name in ("bn2", "classifier", "conv2"))
  before = {"student": participants["student"]}
  after = updated(scheme, before, batch(), optimizer=DECAYING)
  statistics = [tree["student"]["batch_stats"] for tree in (before, after)]
  assert_same(*(s["bn1"] for s in statistics))
  assert_all_moved(*(s["bn2"] for s in statistics))
  assert_same(*(tree["student"]["params"]["conv1"] for tree in (before, after)))
  assert_all_moved(
    *(select(tree, scheme.learners)["student"]["conv2"]["kernel"] for tree in (before, after))
  )


def test_the_classifier_of_a_simkd_student_has_its_initial_weights():
  distilling = methods.simkd(
    STUDENT, TEACHER, Projector((3, 3), 12), image_shape=SHAPE, stages=("stage2", "stage2")
  )
  # The two stages together learn every parameter once, the projector aside.
  shapes = jax.eval_shape(distilling.init, jax.random.key(0), batch())
  first = set(select(shapes, distilling.learners)["student"])
  then = set(select(shapes, SCHEME.learners)["student"])
  assert first.isdisjoint(then) and first | then == set(shapes["student"]["params"])
  # It is the one that a student alone of the same seed starts with.
  init = [
    jit(lambda rng, scheme=scheme: scheme.init(rng, batch())["student"]["params"]["classifier"])
    for scheme in (distilling, SCHEME, methods.supervised(STUDENT))
  ]
  drawn_by = [draw(jax.random.key(3)) for draw in init]
  assert_same(drawn_by[0], drawn_by[1])
  assert_same(drawn_by[0], drawn_by[2])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"kd_weight": 1.0}, r"kd_weight is 1\.0 but there is no teacher"),
    ({"label_weight": 0.0}, "both 0: nothing would be learned"),
    ({"from_stage": "stage9"}, "unknown stage 'stage9'"),
  ],
)
def test_a_scheme_without_anything_to_learn_is_refused(options, message):
  with pytest.raises(ConfigError, match=message):
    methods.fresh_classifier(STUDENT, image_shape=SHAPE, **options)
