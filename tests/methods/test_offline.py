"""The offline scheme: objective, learners, and frozen teachers."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxkd import losses, methods
from jaxkd.adapters import AtStages, Regressor
from jaxkd.methods import Distillation, per_example
from tests.methods.one_step import (
  assert_all_moved,
  assert_all_zero,
  assert_same,
  jit,
  loss_and_gradients,
  start,
  updated,
)
from tests.tiny import TinyNet, batch

STUDENT, WISE, OLD = TinyNet(), TinyNet(width=6), TinyNet(width=5)
KD = Distillation("kd", per_example(losses.knowledge_distillation), weight=0.9, teacher="wise")
AT = Distillation(
  "at",
  per_example(losses.attention_transfer, stages=("stage1", "stage2")),
  weight=10.0,
  teacher="old",
)
HINT = Distillation(
  "hint",
  per_example(losses.fitnets, stages=("stage2",)),
  weight=2.0,
  teacher="wise",
  adapter=AtStages({"stage2": Regressor(size=(3, 3), channels=12)}),
)
SCHEME = methods.offline(STUDENT, {"wise": WISE, "old": OLD}, [KD, AT, HINT], label_weight=0.5)


@pytest.fixture(scope="module")
def participants():
  return start(SCHEME)


@pytest.fixture(scope="module")
def differentiated():
  return loss_and_gradients(SCHEME)


@pytest.fixture(scope="module")
def outcome(participants, differentiated):
  """((scalar, Aux), gradients) on the labelled batch."""
  return differentiated(participants, batch())


def test_the_scalar_is_the_sum_of_the_terms(outcome):
  (scalar, aux), _ = outcome
  assert set(aux.terms) == {"labels", "kd", "at", "hint"}
  assert all(float(terms.total) > 0 for terms in aux.terms.values())
  total = sum(float(terms.total) for terms in aux.terms.values())
  np.testing.assert_allclose(scalar, total, rtol=1e-6)


def test_each_loss_compares_with_its_own_teacher_through_its_own_adapter(participants, outcome):
  training = {"train": True, "mutable": ["batch_stats"]}

  @jit
  def by_hand(participants, data):
    student, _ = STUDENT.apply(participants["student"], data.inputs, **training)
    wise = WISE.apply(participants["wise"], data.inputs, train=False)
    old = OLD.apply(participants["old"], data.inputs, train=False)
    regressed, _ = HINT.adapter.modules["stage2"].apply(
      participants["hint_adapter"], student.features["stage2"], **training
    )
    connected = dataclasses.replace(student, features={"stage2": regressed})
    return {
      "labels": 0.5 * losses.cross_entropy(student.logits, data.labels),
      "kd": 0.9 * KD.loss(student, wise, data, None).total,
      "at": 10.0 * AT.loss(student, old, data, None).total,
      "hint": 2.0 * HINT.loss(connected, wise, data, None).total,
    }

  (_, aux), _ = outcome
  for name, value in by_hand(participants, batch()).items():
    np.testing.assert_allclose(aux.terms[name].total, value, rtol=1e-4, err_msg=name)


def test_teachers_get_no_gradient_and_are_not_learners(outcome):
  _, gradients = outcome
  for teacher in ("wise", "old"):
    assert teacher not in SCHEME.learners
    assert_all_zero(gradients[teacher])


def test_student_and_adapters_learn_and_teachers_do_not(participants):
  assert SCHEME.learners == ("student", "hint_adapter")
  after = updated(SCHEME, participants, batch())
  for name in ("wise", "old"):
    assert_same(participants[name], after[name])
  for name in SCHEME.learners:
    assert_all_moved(participants[name]["batch_stats"], after[name]["batch_stats"])
  paths = [("student", "conv1"), ("student", "conv2"), ("student", "classifier")]
  for name, layer in [*paths, ("hint_adapter", "conv")]:
    kernels = (tree[name]["params"][layer]["kernel"] for tree in (participants, after))
    assert_all_moved(*kernels)


def test_unlabelled_examples_contribute_the_distillation_terms_only(
  participants, differentiated, outcome
):
  (_, labelled), _ = outcome
  data = batch()
  # What stands in the place of an unlabelled example's label may look like one.
  others = (data.labels + 1) % 3
  labels = jax.numpy.where(jax.numpy.arange(8) < 4, others, data.labels)
  unlabelled = dataclasses.replace(data, weights=data.weights.at[:4].set(0.0), labels=labels)
  (_, aux), _ = differentiated(participants, unlabelled)
  for name in ("kd", "at", "hint"):
    np.testing.assert_array_equal(aux.terms[name].total, labelled.terms[name].total)
  assert float(aux.terms["labels"].total) != float(labelled.terms["labels"].total)
  assert float(aux.metrics["accuracy"][1]) == 4

  none = dataclasses.replace(data, weights=0 * data.weights, labels=others)
  (scalar, aux), gradients = differentiated(participants, none)
  assert float(aux.terms["labels"].total) == 0.0
  distilled = sum(float(aux.terms[name].total) for name in ("kd", "at", "hint"))
  np.testing.assert_allclose(scalar, distilled, rtol=1e-6)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_without_label_weight_labels_change_nothing(participants):
  scheme = methods.offline(STUDENT, {"wise": WISE}, [KD], label_weight=0)
  data = batch()
  given = {name: participants[name] for name in ("student", "wise")}
  apply = loss_and_gradients(scheme)
  (scalar, aux), gradients = apply(given, data)
  assert list(aux.terms) == ["kd"]
  (other, _), other_gradients = apply(given, dataclasses.replace(data, labels=0 * data.labels - 1))
  assert_same((scalar, gradients), (other, other_gradients))
  assert any(np.any(leaf) for leaf in jax.tree.leaves(gradients["student"]))


def test_baseline_and_distilled_student_of_a_seed_have_equal_initial_weights(participants):
  alone = start(methods.supervised(STUDENT))
  assert_same(alone["student"], participants["student"])
  other = start(methods.supervised(STUDENT), seed=1)
  assert_all_moved(
    other["student"]["params"]["conv1"]["kernel"],
    participants["student"]["params"]["conv1"]["kernel"],
  )


def test_participants_of_one_seed_are_drawn_independently():
  twins = start(methods.offline(STUDENT, {"a": STUDENT, "b": STUDENT}, []))
  kernels = [twins[name]["params"]["conv2"]["kernel"] for name in ("student", "a", "b")]
  for first, second in ((0, 1), (0, 2), (1, 2)):
    assert_all_moved(kernels[first], kernels[second])


def test_prediction_and_export_are_the_student_without_adapters(participants):
  data = batch()
  predicted = jit(SCHEME.predict)(participants, data.inputs)
  assert list(predicted) == ["student"]
  network = SCHEME.export(participants)["student"]
  assert network.module == STUDENT
  logits = jit(network.module.apply)(network.variables, data.inputs).logits
  np.testing.assert_array_equal(logits, predicted["student"])


@pytest.mark.parametrize(
  ("teachers", "distillations", "message"),
  [
    (["wise"], [KD, KD], r"need different names, got \['labels', 'kd', 'kd'\]"),
    (["wise"], [dataclasses.replace(KD, name="labels")], "terms .* need different names"),
    (["student", "wise"], [KD], r"participants need different names, got \['student', 'student'"),
    (["hint_adapter", "wise"], [HINT], "participants need different names"),
    (["old"], [KD], r"distillation 'kd' names teacher 'wise'; there are \['old'\]"),
  ],
  ids=["distillations", "the-label-term", "a-teacher-student", "an-adapter", "no-such-teacher"],
)
def test_duplicate_and_unknown_names_are_refused(teachers, distillations, message):
  with pytest.raises(ValueError, match=message):
    methods.offline(STUDENT, dict.fromkeys(teachers, WISE), distillations)
