"""SimKD: the student predicts through its teacher's classifier, also when exported."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, methods, models
from jaxkd.adapters import Projector, projector_for
from jaxkd.export.bundles import load_bundle, save_bundle
from jaxkd.methods import Distillation, per_example
from jaxkd.networks import update
from jaxkd.types import Batch, Network
from tests.methods.one_step import (
  assert_all_moved,
  assert_all_zero,
  assert_same,
  jit,
  loss_and_gradients,
  start,
  updated,
)
from tests.models.drawn import drawn
from tests.tiny import TinyNet, batch

STUDENT, TEACHER = TinyNet(), TinyNet(width=6)
PROJECTOR = Projector(size=(3, 3), channels=12)
SCHEME = methods.simkd(
  STUDENT, TEACHER, PROJECTOR, image_shape=(6, 6, 1), stages=("stage2", "stage2"), weight=3.0
)


@pytest.fixture(scope="module")
def participants():
  return start(SCHEME)


@pytest.fixture(scope="module")
def predict():
  return jit(lambda participants: SCHEME.predict(participants, batch().inputs))


@pytest.fixture(scope="module")
def differentiated():
  return loss_and_gradients(SCHEME)


@pytest.fixture(scope="module")
def outcome(participants, differentiated):
  """((scalar, Aux), gradients) of the first batch."""
  return differentiated(participants, batch())


def with_classifier(participants, name, change):
  kernel = participants[name]["params"]["classifier"]["kernel"]
  return update(participants, {name: {"params": {"classifier": {"kernel": change(kernel)}}}})


def test_the_scalar_is_the_feature_term_alone(participants, outcome):
  @jit
  def by_hand(participants, images):
    training = {"train": True, "mutable": ["batch_stats"]}
    student, _ = STUDENT.apply(participants["student"], images, **training)
    projected, _ = PROJECTOR.apply(
      participants["projector"], student.features["stage2"], **training
    )
    teacher = TEACHER.apply(participants["teacher"], images, train=False)
    return jnp.mean((projected - teacher.features["stage2"]) ** 2)

  (scalar, aux), _ = outcome
  np.testing.assert_allclose(scalar, 3.0 * by_hand(participants, batch().inputs), rtol=1e-5)
  assert list(aux.terms) == ["simkd"]
  np.testing.assert_array_equal(aux.terms["simkd"].total, scalar)
  assert aux.terms["simkd"].logit == 0.0


def test_labels_and_weights_only_change_metrics(participants, differentiated, outcome):
  data = batch()
  unlabelled = dataclasses.replace(data, labels=0 * data.labels - 1, weights=0 * data.weights)
  (scalar, aux), gradients = differentiated(participants, unlabelled)
  (labelled, _), labelled_gradients = outcome
  np.testing.assert_array_equal(scalar, labelled)
  assert_same(gradients, labelled_gradients)
  assert float(aux.metrics["accuracy"][1]) == 0


def test_the_students_own_classifier_is_not_used(participants, predict, outcome):
  _, gradients = outcome
  assert_all_zero(gradients["student"]["params"]["classifier"])
  changed = with_classifier(participants, "student", lambda kernel: kernel + 1.0)
  assert_same(predict(changed), predict(participants))


def test_predictions_go_through_the_teachers_classifier(participants, predict):
  logits = predict(participants)["student"]
  doubled = with_classifier(participants, "teacher", lambda kernel: 2.0 * kernel)
  # Biases start at zero, so the logits double with the kernel.
  np.testing.assert_allclose(predict(doubled)["student"], 2.0 * logits, rtol=1e-5)
  assert np.abs(logits).max() > 0


def test_the_teacher_gets_no_gradient_and_does_not_change(participants, outcome):
  _, gradients = outcome
  layers = ("bn1", "bn2", "conv1", "conv2")
  assert SCHEME.learners == (*(f"student/{name}" for name in layers), "projector")
  assert_all_zero(gradients["teacher"])
  after = updated(SCHEME, participants, batch())
  assert_same(participants["teacher"], after["teacher"])
  assert_same(
    participants["student"]["params"]["classifier"], after["student"]["params"]["classifier"]
  )
  for name in ("student", "projector"):
    assert_all_moved(participants[name]["batch_stats"], after[name]["batch_stats"])
  for name in ("conv1", "conv2", "conv3"):
    kernels = (tree["projector"]["params"][name]["kernel"] for tree in (participants, after))
    assert_all_moved(*kernels)
  for name in ("conv1", "conv2"):
    kernels = (tree["student"]["params"][name]["kernel"] for tree in (participants, after))
    assert_all_moved(*kernels)


def test_a_seed_gives_the_student_alone_and_the_simkd_student_the_same_start(participants):
  assert_same(start(methods.supervised(STUDENT))["student"], participants["student"])


def test_the_exported_network_gives_the_predicted_logits(participants, predict):
  network = SCHEME.export(participants)["student"]
  logits = jit(network.module.apply)(network.variables, batch().inputs).logits
  np.testing.assert_allclose(logits, predict(participants)["student"], rtol=1e-6)


# The rest follows a student from bundle to bundle: with a model that bundles know.

SHAPE = (8, 8, 1)
RESNET = models.create("resnet8_w4", num_classes=3)
MAP = (2, 2, 2, 16)  # of its stage3


def images():
  return jax.random.normal(jax.random.key(5), (4, *SHAPE))


def data():
  return Batch(images(), jnp.array([0, 1, 2, 0]), jnp.ones(4), jnp.arange(4))


def reusing(teacher):
  """A SimKD scheme under `teacher`."""
  return methods.simkd(RESNET, teacher, projector_for(MAP, MAP, stage="stage3"), image_shape=SHAPE)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
  """(a distilled student, its logits), the student from a bundle whose teacher's is deleted."""
  folder = tmp_path_factory.mktemp("bundles")
  variables = drawn(methods.supervised(RESNET, participant="teacher"), data())["teacher"]
  description = {"image_shape": list(SHAPE)}
  save_bundle(folder / "teacher", Network(RESNET, variables), description)
  teacher, _ = load_bundle(folder / "teacher")
  scheme = reusing(teacher.module)
  participants = {**drawn(scheme, data()), "teacher": teacher.variables}
  logits = jit(scheme.predict)(participants, images())["student"]
  save_bundle(folder / "student", scheme.export(participants)["student"], description)
  shutil.rmtree(folder / "teacher")
  return load_bundle(folder / "student")[0], logits


@pytest.mark.long
def test_a_bundled_student_predicts_without_its_teachers_checkpoint(distilled):
  network, expected = distilled
  logits = jit(network.module.apply)(network.variables, images()).logits
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_a_bundled_student_teaches_attention_and_soft_targets(distilled):
  network, _ = distilled
  attention = per_example(losses.attention_transfer, stages=("stage1", "stage3"))
  scheme = methods.offline(
    RESNET,
    {"teacher": network.module},
    [Distillation("kd", per_example(losses.knowledge_distillation)), Distillation("at", attention)],
  )
  participants = {**drawn(scheme, data()), "teacher": network.variables}
  (_, aux), gradients = loss_and_gradients(scheme)(participants, data())
  assert all(float(terms.total) > 0 for terms in aux.terms.values())
  assert_all_zero(gradients["teacher"])
  for layer in ("stem_conv", "classifier"):
    assert np.any(gradients["student"]["params"][layer]["kernel"])


def test_a_bundled_students_classifier_can_be_reused(distilled):
  network, _ = distilled
  scheme = reusing(network.module)
  participants = {**drawn(scheme, data()), "teacher": network.variables}
  predicted = jit(scheme.predict)(participants, images())["student"]
  grandchild = scheme.export(participants)["student"]
  logits = jit(grandchild.module.apply)(grandchild.variables, images()).logits
  np.testing.assert_allclose(logits, predicted, rtol=1e-5, atol=1e-6)
  # The classifier is still the first teacher's.
  bias = network.variables["params"]["teacher"]["classifier"]["bias"]
  kept = jax.tree.leaves(grandchild.variables["params"]["teacher"])
  assert any(leaf.shape == bias.shape and np.all(leaf == bias) for leaf in kept)
