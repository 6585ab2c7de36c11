"""SimKD+ and ++, joint training, several teachers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxkd import losses, methods, models
from jaxkd.adapters import Projector, projector_for
from jaxkd.errors import ConfigError
from jaxkd.export.bundles import load_bundle, save_bundle
from jaxkd.types import Batch, Scheme
from tests.methods.one_step import (
  assert_all_moved,
  assert_all_zero,
  assert_same,
  context,
  jit,
  loss_and_gradients,
  updated,
)
from tests.models.drawn import drawn
from tests.tiny import TinyNet, batch

SHAPE = (8, 8, 1)
RESNET, WIDER = (models.create(f"resnet8_w{width}", num_classes=3) for width in (4, 8))
LAYERS = {
  "stage1": ("stem_bn", "stem_conv", "stage1_0"),
  "stage2": ("stem_bn", "stem_conv", "stage1_0", "stage2_0"),
}
DECAYING = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1))


def data():
  images = np.random.default_rng(5).normal(size=(4, *SHAPE)).astype(np.float32)
  return Batch(images, jnp.array([0, 1, 2, 0]), jnp.ones(4), jnp.arange(4))


@dataclasses.dataclass
class Trained:
  stage: str
  scheme: Scheme
  before: dict[str, Any]
  after: dict[str, Any]


@pytest.fixture(scope="module", params=["stage2", "stage1"], ids=["plus", "plus_plus"])
def trained(request):
  """One step with weight decay."""
  stage = request.param
  width, size = {"stage2": (16, 4), "stage1": (8, 8)}[stage]
  projector = projector_for(
    (4, size, size, width // 2), (4, size, size, width), stage=stage, layout="1x1-dw3x3-1x1"
  )
  scheme = methods.simkd(RESNET, WIDER, projector, image_shape=SHAPE, stages=(stage, stage))
  before = drawn(scheme, data())
  return Trained(stage, scheme, before, updated(scheme, before, data(), optimizer=DECAYING))


@pytest.mark.long
def test_only_the_layers_up_to_the_matched_stage_learn(trained):
  learners = {f"student/{name}" for name in LAYERS[trained.stage]}
  assert set(trained.scheme.learners) == {*learners, "projector"}
  before, after = trained.before, trained.after
  for name in LAYERS[trained.stage]:
    assert_all_moved(before["student"]["params"][name], after["student"]["params"][name])
  assert_all_moved(before["projector"], after["projector"])
  assert_same(before["teacher"], after["teacher"])


def test_weight_decay_does_not_change_unused_layers(trained):
  for collection in ("params", "batch_stats"):
    before, after = (tree["student"][collection] for tree in (trained.before, trained.after))
    unused = set(before) - set(LAYERS[trained.stage])
    assert {"params": "classifier", "batch_stats": "stage3_0"}[collection] in unused
    assert_same({name: before[name] for name in unused}, {name: after[name] for name in unused})


@pytest.mark.long
def test_the_bundle_gives_the_schemes_predictions(trained, tmp_path):
  network = trained.scheme.export(trained.after)["student"]
  reused = {"stage2": {"stage3_0", "classifier"}, "stage1": {"stage2_0", "stage3_0", "classifier"}}
  assert set(network.variables["params"]["teacher"]) == reused[trained.stage]
  assert set(network.variables["params"]["student"]) == set(LAYERS[trained.stage])
  save_bundle(tmp_path / "student", network, {"image_shape": list(SHAPE)})
  loaded, _ = load_bundle(tmp_path / "student")

  @jit
  def both(participants, variables):
    predicted = trained.scheme.predict(participants, data().inputs)
    return predicted["student"], loaded.module.apply(variables, data().inputs).logits

  predicted, logits = both(trained.after, loaded.variables)
  np.testing.assert_allclose(logits, predicted, rtol=1e-5, atol=1e-6)
  assert np.ptp(predicted) > 0


def test_a_tapped_student_learns_no_layer_after_its_stage_and_can_be_exported():
  module = nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, nn.Conv(4, (3, 3)), nn.Dense(3)])
  student = models.tap(
    module, {"first": "layers_2:input"}, logits=lambda output: output.mean((1, 2))
  )
  scheme = tiny(student=student, stages=("first", "stage2"))
  assert scheme.learners == ("student/layers_0", "projector")
  participants = drawn(scheme, batch())
  network = scheme.export(participants)["student"]

  @jit
  def both(participants):
    predicted = scheme.predict(participants, batch().inputs)["student"]
    return predicted, network.module.apply(network.variables, batch().inputs).logits

  predicted, logits = both(participants)
  np.testing.assert_allclose(logits, predicted, rtol=1e-5, atol=1e-6)


# The rest is about terms and names: the smallest networks do.

TINY, TINY_TEACHER, TINY_PROJECTOR = TinyNet(), TinyNet(width=6), Projector((3, 3), 12)


def tiny(student=TINY, teacher=TINY_TEACHER, projector=TINY_PROJECTOR, **options):
  options = {"image_shape": (6, 6, 1), "stages": ("stage2", "stage2"), **options}
  return methods.simkd(student, teacher, projector, **options)


def test_joint_training_adds_terms_on_the_students_own_logits():
  scheme = tiny(weight=2.0, label_weight=0.5, kd_weight=0.3, temperature=3.0)
  assert scheme.learners == ("student", "projector")
  participants = drawn(scheme, batch())
  (scalar, aux), gradients = loss_and_gradients(scheme)(participants, batch())

  @jit
  def by_hand(participants):
    output, _ = TinyNet().apply(
      participants["student"], batch().inputs, train=True, mutable=["batch_stats"]
    )
    teacher = TinyNet(width=6).apply(participants["teacher"], batch().inputs, train=False)
    kd = losses.soft_target_kl(output.logits, teacher.logits, temperature=3.0)
    return losses.cross_entropy(output.logits, batch().labels), kd

  labels, kd = by_hand(participants)
  assert set(aux.terms) == {"simkd", "labels", "kd"}
  np.testing.assert_allclose(aux.terms["labels"].total, 0.5 * labels, rtol=1e-5)
  np.testing.assert_allclose(aux.terms["kd"].total, 0.3 * kd, rtol=1e-5)
  np.testing.assert_allclose(scalar, sum(t.total for t in aux.terms.values()), rtol=1e-6)
  assert float(aux.terms["simkd"].total) > 0
  assert_all_zero(gradients["teacher"])


@pytest.mark.long
@pytest.mark.parametrize(("weight", "term"), [("label_weight", "labels"), ("kd_weight", "kd")])
def test_either_weight_alone_trains_the_students_own_classifier(weight, term):
  # Without batch normalisation the student is in training what it is in evaluation.
  scheme = tiny(student=TinyNet(norm=False), classifier="student", **{weight: 1.0})
  participants = drawn(scheme, batch())
  (_, aux), gradients = loss_and_gradients(scheme)(participants, batch())
  assert set(aux.terms) == {"simkd", term}
  assert np.abs(gradients["student"]["params"]["classifier"]["kernel"]).min() > 0
  # What is scored is the predictor called "student".
  predicted = jit(scheme.predict)(participants, batch().inputs)
  right = {name: int(np.sum(z.argmax(-1) == batch().labels)) for name, z in predicted.items()}
  assert right["student"] != right["reused"]
  assert float(aux.metrics["accuracy"][0]) == right["student"]


def test_classifier_selects_which_of_two_predictors_is_the_student():
  through_teacher = tiny(label_weight=1.0)
  through_own = tiny(label_weight=1.0, classifier="student")
  participants = drawn(through_own, batch())

  @jit
  def run(participants):
    predicted, exported = [], []
    for scheme in (tiny(), through_teacher, through_own):
      predicted.append(scheme.predict(participants, batch().inputs))
      exported.append(
        {
          name: network.module.apply(network.variables, batch().inputs).logits
          for name, network in scheme.export(participants).items()
        }
      )
    return predicted, exported

  (pure, one, other), exported = run(participants)
  assert set(pure) == {"student"}
  assert set(one) == {"student", "own"} and set(other) == {"student", "reused"}
  np.testing.assert_allclose(pure["student"], one["student"], rtol=1e-5)
  np.testing.assert_allclose(one["student"], other["reused"], rtol=1e-5)
  np.testing.assert_allclose(one["own"], other["student"], rtol=1e-5)
  own = jit(TinyNet().apply)(participants["student"], batch().inputs).logits
  np.testing.assert_allclose(one["own"], own, rtol=1e-5)
  assert not np.allclose(one["own"], one["student"])
  for predicted, networks in zip((pure, one, other), exported, strict=True):
    assert predicted.keys() == networks.keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), predicted, networks)


def test_an_untrained_classifier_is_refused():
  with pytest.raises(ConfigError, match="nothing trains the student's own classifier"):
    tiny(classifier="student")
  with pytest.raises(ConfigError, match="unknown classifier 'own'"):
    tiny(classifier="own", label_weight=1.0)


def of_two(**options):
  teachers = {"a": TinyNet(width=6), "b": TinyNet(width=6)}
  return tiny(teacher=teachers, **options)


def test_two_equal_teachers_act_as_one():
  scheme = tiny()
  participants = drawn(scheme, batch())
  twins = {
    "student": participants["student"],
    **{name: participants["teacher"] for name in ("a", "b")},
    **{f"projector_{name}": participants["projector"] for name in ("a", "b")},
  }
  both = of_two(weight=1.0)
  assert both.learners[-2:] == ("projector_a", "projector_b")
  assert both.learners[:-2] == scheme.learners[:-1]

  @jit
  def run(participants, twins):
    def terms(scheme, variables):
      targets = scheme.targets(variables, batch())
      scalar, aux = scheme.loss({}, variables, batch(), targets, context())
      return scalar, aux.terms, scheme.predict(variables, batch().inputs)

    return terms(scheme, participants), terms(both, twins)

  (alone, _, expected), (shared, terms, predicted) = run(participants, twins)
  assert set(terms) == {"simkd_a", "simkd_b"}
  np.testing.assert_allclose(shared, alone, rtol=1e-6)
  assert set(predicted) == {"student", "student_via_a", "student_via_b"}
  for logits in predicted.values():
    np.testing.assert_allclose(logits, expected["student"], rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_vectors_and_tokens_of_another_grid_teach_maps_together():
  """A perceptron and a transformer in one scheme, whose student has maps of 3x3."""
  teachers = {
    "mlp": models.MLP((6, 5, 8), 3),
    "vit": models.VisionTransformer(3, 8, 2, (1, 1, 1), 3),
  }
  shapes = {"mlp": (8, 8), "vit": (8, 2, 2, 8)}
  projectors = {
    name: projector_for((8, 3, 3, 8), shape, stage="stage2", layout="1x1", activation=name == "mlp")
    for name, shape in shapes.items()
  }
  scheme = tiny(teacher=teachers, projector=projectors, stages=("stage2", "stage3"))
  participants = drawn(scheme, batch())
  network = scheme.export(participants)["student"]
  assert set(network.variables["params"]["teachers_mlp"]) == {"classifier"}
  assert set(network.variables["params"]["teachers_vit"]) == {"classifier", "final_norm"}
  (_, aux), gradients = loss_and_gradients(scheme)(participants, batch())

  @jit
  def run(participants):
    targets = scheme.targets(participants, batch())
    predicted = scheme.predict(participants, batch().inputs)
    exported = network.module.apply(network.variables, batch().inputs).logits
    return (
      {name: targets[f"simkd_{name}"].features["stage3"] for name in teachers},
      predicted,
      exported,
    )

  targets, predicted, exported = run(participants)
  assert {name: target.shape for name, target in targets.items()} == shapes
  assert (targets["vit"] < 0).any()
  np.testing.assert_allclose(exported, predicted["student"], rtol=1e-4, atol=1e-5)
  for name in teachers:
    assert float(aux.terms[f"simkd_{name}"].total) > 0
    assert np.any(gradients[f"projector_{name}"]["params"]["conv1"]["kernel"])
    assert_all_zero(gradients[name])
    assert np.ptp(predicted[f"student_via_{name}"], axis=0).max() > 1e-3
  assert np.all(np.isfinite(gradients["student"]["params"]["conv1"]["kernel"]))


def test_teacher_weights_scale_losses_and_logits():
  weights = {"b": 6.0, "a": 2.0}
  weighted, even = (of_two(teacher_weights=w, kd_weight=1.0) for w in (weights, None))
  # Of "b" alone, so that its own values are seen.
  only = of_two(teacher_weights={"a": 0.0, "b": 1.0}, kd_weight=1.0)
  participants = drawn(weighted, batch())

  @jit
  def run(participants):
    def terms(scheme):
      targets = scheme.targets(participants, batch())
      aux = scheme.loss({}, participants, batch(), targets, context())[1]
      return {name: t.total for name, t in aux.terms.items()}

    predicted = weighted.predict(participants, batch().inputs)
    exported = {
      name: network.module.apply(network.variables, batch().inputs).logits
      for name, network in weighted.export(participants).items()
    }
    return [terms(scheme) for scheme in (weighted, even, only)], predicted, exported

  (terms, even_terms, only_b), predicted, exported = run(participants)
  np.testing.assert_allclose(terms["simkd_a"], even_terms["simkd_a"] / 2, rtol=1e-5)
  np.testing.assert_allclose(terms["simkd_b"], even_terms["simkd_b"] * 1.5, rtol=1e-5)
  np.testing.assert_allclose(even_terms["simkd_b"], only_b["simkd_b"] / 2, rtol=1e-5)
  assert float(only_b["simkd_a"]) == 0
  # KD is linear in the shares, too: 3/4 b + 1/4 a, and a = 2 even - b.
  kd_a = 2 * even_terms["kd"] - only_b["kd"]
  np.testing.assert_allclose(terms["kd"], 0.25 * kd_a + 0.75 * only_b["kd"], rtol=1e-4)
  assert not np.isclose(kd_a, only_b["kd"], rtol=1e-2)

  mean = 0.25 * predicted["student_via_a"] + 0.75 * predicted["student_via_b"]
  np.testing.assert_allclose(predicted["student"], mean, rtol=1e-5, atol=1e-6)
  assert predicted.keys() == exported.keys() == {"student", "own", "student_via_a", "student_via_b"}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), predicted, exported
  )


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"teacher_weights": {"a": 1.0}}, r"teacher_weights names \['a'\], but the teachers are"),
    ({"teacher_weights": {"a": 2.0, "b": -1.0}}, "no weight may be negative"),
    ({"teacher_weights": {"a": 0.0, "b": 0.0}}, "nor all of them 0"),
    ({"projector": {"a": TINY_PROJECTOR}}, r"projector names \['a'\], but the teachers are"),
    ({"teacher": {"student": TinyNet()}}, "participants need different names"),
    ({"teacher": {}}, "at least one teacher"),
  ],
)
def test_teachers_of_different_classes_or_names_are_refused(options, message):
  teacher = options.pop("teacher", {"a": TinyNet(), "b": TinyNet()})
  with pytest.raises(ConfigError, match=message):
    tiny(teacher=teacher, **options)
