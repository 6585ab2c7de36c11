"""One encoder in front of several teachers' classifiers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.adapters import Projector
from jaxkd.errors import ConfigError
from jaxkd.export.bundles import load_bundle, save_bundle
from jaxkd.models import ReusedClassifiers, reuse_classifier, reuse_classifiers
from tests.methods.one_step import jit
from tests.models.drawn import drawn

IMAGE = (8, 8, 1)
STUDENT = models.create("resnet8_w4", num_classes=3)
TEACHERS = {name: models.create(f"resnet8_w{w}", num_classes=3) for name, w in (("a", 8), ("b", 4))}
PROJECTORS = {"a": Projector((2, 2), 32, layout="1x1"), "b": Projector((2, 2), 16, layout="1x1")}
SHARES = {"a": 0.25, "b": 0.75}
OPTIONS = {"shares": SHARES, "image_shape": IMAGE}


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).normal(size=(2, *IMAGE)).astype(np.float32)


@pytest.fixture(scope="module")
def parts(images):
  maps = jnp.ones((1, 2, 2, 16))
  return (
    drawn(STUDENT, images, seed=1),
    {name: drawn(p, maps, train=False, seed=2) for name, p in PROJECTORS.items()},
    {name: drawn(t, images, seed=3) for name, t in TEACHERS.items()},
  )


def reuse(parts, **options):
  return reuse_classifiers(STUDENT, PROJECTORS, TEACHERS, *parts, **OPTIONS, **options)


@pytest.fixture(scope="module")
def network(parts):
  return reuse(parts)


@pytest.fixture(scope="module")
def output(network, images):
  return jit(network.module.apply)(network.variables, images)


def test_the_logits_are_the_weighted_mean_over_the_teachers(parts, output, images):
  student, projectors, teachers = parts
  each = [
    reuse_classifier(
      STUDENT,
      PROJECTORS[name],
      TEACHERS[name],
      student,
      projectors[name],
      teachers[name],
      image_shape=IMAGE,
    )
    for name in ("a", "b")
  ]
  a, b = jit(lambda x: [n.module.apply(n.variables, x).logits for n in each])(images)
  np.testing.assert_allclose(output.logits, 0.25 * a + 0.75 * b, rtol=1e-5, atol=1e-6)
  assert not np.allclose(a, b)


def test_only_what_runs_is_kept_and_the_encoder_once(network, parts):
  params = network.variables["params"]
  assert set(params) == {"student", "projectors_a", "projectors_b", "teachers_a", "teachers_b"}
  assert set(params["student"]) == set(parts[0]["params"]) - {"classifier"}
  assert set(params["teachers_a"]) == {"classifier"}
  kernel = parts[2]["a"]["params"]["classifier"]["kernel"]
  assert params["teachers_a"]["classifier"]["kernel"] is kernel


def test_the_teachers_stay_in_evaluation_mode_when_the_rest_trains(parts):
  early = {"student_stage": "stage2", "teacher_stage": "stage2"}
  bridges = {"a": Projector((4, 4), 16, layout="1x1"), "b": Projector((4, 4), 8, layout="1x1")}
  maps = jnp.ones((1, 4, 4, 8))
  drawn_bridges = {name: drawn(p, maps, train=False) for name, p in bridges.items()}
  module, variables = reuse_classifiers(
    STUDENT, bridges, TEACHERS, parts[0], drawn_bridges, parts[2], **OPTIONS, **early
  )
  assert set(variables["params"]["teachers_b"]) == {"stage3_0", "classifier"}
  features = np.random.default_rng(1).normal(size=(2, 4, 4, 8)).astype(np.float32)

  @jit
  def train(variables, features):
    mutable = ["batch_stats"]
    return module.apply(variables, features, "stage2", train=True, method="resume", mutable=mutable)

  _, moved = train(variables, features)
  before, after = variables["batch_stats"], moved["batch_stats"]
  for name in ("teachers_a", "teachers_b"):
    jax.tree.map(np.testing.assert_array_equal, before[name], after[name])
  for name in ("projectors_a", "projectors_b"):
    moves = jax.tree.map(lambda a, b: bool(np.any(a != b)), before[name], after[name])
    assert all(jax.tree.leaves(moves))


@pytest.mark.parametrize("stage", ["stage2", "stage3"])
def test_it_resumes_from_and_encodes_up_to_its_stages(stage, network, output, images):
  module, variables = network
  assert module.stages == ("stem", "stage1", "stage2", "stage3")
  assert set(output.features) == set(module.stages)

  @jit
  def run(variables, images):
    encoded = module.apply(variables, images, to_stage=stage, method="encode")
    features = encoded.features[stage]
    return encoded, module.apply(variables, features, stage, method="resume")

  encoded, rest = run(variables, images)
  at = module.stages.index(stage) + 1
  assert encoded.logits is None
  assert set(encoded.features) == set(module.stages[:at])
  assert set(rest.features) == set(module.stages[at:])
  np.testing.assert_allclose(rest.logits, output.logits, rtol=1e-4, atol=1e-5)


def test_a_bundle_keeps_every_teacher_and_its_share(network, output, images, tmp_path):
  save_bundle(tmp_path / "student", network, {"image_shape": list(IMAGE)})
  loaded, _ = load_bundle(tmp_path / "student")
  assert dict(loaded.module.shares) == SHARES
  logits = jit(loaded.module.apply)(loaded.variables, images).logits
  np.testing.assert_allclose(logits, output.logits, rtol=1e-5, atol=1e-6)


def test_the_student_says_which_stages_have_both_signs():
  student = models.create("wrn_10_1", num_classes=3)
  module = ReusedClassifiers(student, PROJECTORS, TEACHERS, SHARES, student_stage="stage2")
  assert module.signed_stages == ("stem", "stage1", "stage2")


def test_what_does_not_fit_is_named(network, parts, images):
  for role in ("student_stage", "teacher_stage"):
    with pytest.raises(ConfigError, match=f"unknown {role} 'stage5'"):
      reuse(parts, **{role: "stage5"})
  student, projectors, teachers = parts
  with pytest.raises(ConfigError, match=r"teachers_b_variables: params/classifier/\w+ is missing"):
    reuse((student, projectors, {"a": teachers["a"]}))
  for method, argument in (("encode", "to_stage"), ("resume", "from_stage")):
    with pytest.raises(ConfigError, match="unknown stage 'pooled'"):
      network.module.apply(network.variables, images, method=method, **{argument: "pooled"})
