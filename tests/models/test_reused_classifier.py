from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxkd import models
from jaxkd.adapters import Projector
from jaxkd.errors import ConfigError
from jaxkd.export.bundles import load_bundle, save_bundle
from jaxkd.models import (
  MLP,
  ReusedClassifier,
  ReusedClassifiers,
  VisionTransformer,
  reuse_classifier,
  reuse_classifiers,
  tap,
)
from jaxkd.types import Network
from tests.methods.one_step import jit
from tests.models.drawn import drawn

IMAGE = (8, 8, 1)
STUDENT = models.create("resnet8_w4", num_classes=3)
TEACHER = models.create("resnet8_w8", num_classes=3)


class Bridge(nn.Module):
  """A minimal projector: 1x1 convolution, BN and ReLU."""

  channels: int

  @nn.compact
  def __call__(self, features, train=False):
    x = nn.Conv(self.channels, (1, 1), name="conv")(features)
    return nn.relu(nn.BatchNorm(use_running_average=not train, name="bn")(x))


PROJECTOR = Bridge(32)


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).normal(size=(2, *IMAGE)).astype(np.float32)


@pytest.fixture(scope="module")
def parts(images):
  return (
    Network(STUDENT, drawn(STUDENT, images, seed=1)),
    Network(PROJECTOR, drawn(PROJECTOR, jnp.ones((1, 2, 2, 16)), seed=2)),
    Network(TEACHER, drawn(TEACHER, images, seed=3)),
  )


@pytest.fixture(scope="module")
def network(parts):
  return reuse_classifier(*parts, image_shape=IMAGE)


@pytest.fixture(scope="module")
def output(network, images):
  return jax.jit(network.module.apply)(network.variables, images)


def test_logits_are_the_teachers_classifier_on_the_projected_student_feature(output, parts, images):
  student, projector, teacher = (part.variables for part in parts)
  encoded = jax.jit(STUDENT.apply)(student, images)
  projected = PROJECTOR.apply(projector, encoded.features["stage3"])
  dense = teacher["params"]["classifier"]
  logits = jnp.mean(projected, (1, 2)) @ dense["kernel"] + dense["bias"][None]
  np.testing.assert_allclose(output.features["stage3"], projected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(output.logits, logits, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    output.features["stage1"], encoded.features["stage1"], rtol=1e-5, atol=1e-6
  )
  assert set(output.preactivations) == {"stem", "stage1", "stage2"}


def test_variables_are_those_of_the_layers_that_run(network, parts):
  params, stats = (network.variables[name] for name in ("params", "batch_stats"))
  assert set(params) == {"student", "projector", "teacher"}
  assert set(params["student"]) == set(parts[0].variables["params"]) - {"classifier"}
  assert set(params["teacher"]) == {"classifier"}
  assert set(stats) == {"student", "projector"}
  kernel = parts[2].variables["params"]["classifier"]["kernel"]
  assert params["teacher"]["classifier"]["kernel"] is kernel


@pytest.mark.parametrize("stage", ["stem", "stage1", "stage2", "stage3", "pooled"])
def test_resume_from_every_stage_equals_the_whole_network(stage, network, output):
  module, variables = network
  assert stage in module.stages
  rest = module.apply(variables, output.features[stage], stage, method="resume")
  np.testing.assert_allclose(rest.logits, output.logits, rtol=1e-4, atol=1e-5)
  assert set(rest.features) == set(module.stages[module.stages.index(stage) + 1 :])


def test_encode_returns_the_features_up_to_a_stage(network, output, images):
  module, variables = network
  for stage in ("stage1", "stage3", "pooled"):
    found = jax.eval_shape(
      lambda v, x, stage=stage: module.apply(v, x, to_stage=stage, method="encode"),
      variables,
      images,
    )
    assert found.logits is None
    assert set(found.features) == set(module.stages[: module.stages.index(stage) + 1])
    assert found.features[stage].shape == output.features[stage].shape


def test_resume_to_a_stage_name_of_both_networks_gives_the_teachers_feature(network, output):
  module, variables = network
  found = jax.eval_shape(
    lambda v, x: module.apply(v, x, "stage1", to_stage="stage3", method="resume"),
    variables,
    output.features["stage1"],
  )
  assert found.features["stage3"].shape == output.features["stage3"].shape


def test_earlier_stage_reuses_more_teacher_layers_in_evaluation_mode(parts, images):
  student, _, teacher = parts
  bridge = Bridge(16)
  wide = drawn(bridge, jnp.ones((1, 4, 4, 8)))
  module, variables = reuse_classifier(
    student,
    Network(bridge, wide),
    teacher,
    student_stage="stage2",
    teacher_stage="stage2",
    image_shape=IMAGE,
  )
  assert set(variables["params"]["teacher"]) == {"stage3_0", "classifier"}
  assert set(variables["params"]["student"]) == {"stem_conv", "stem_bn", "stage1_0", "stage2_0"}
  output, moved = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"]))(
    variables, images
  )
  assert output.features["stage3"].shape[-1] == 32
  # The teacher stays in evaluation mode while the rest trains.
  before, after = variables["batch_stats"], moved["batch_stats"]
  jax.tree.map(np.testing.assert_array_equal, before["teacher"], after["teacher"])
  assert not np.allclose(before["student"]["stem_bn"]["mean"], after["student"]["stem_bn"]["mean"])
  assert not np.allclose(before["projector"]["bn"]["mean"], after["projector"]["bn"]["mean"])


def test_teachers_stage_is_kept_if_both_networks_have_its_name(parts, images):
  bridge = Bridge(16)
  wide = drawn(bridge, jnp.ones((1, 2, 2, 16)))
  module, variables = reuse_classifier(
    parts[0],
    Network(bridge, wide),
    parts[2],
    teacher_stage="stage2",
    image_shape=IMAGE,
  )
  assert module.stages == ("stem", "stage1", "stage2", "stage3", "pooled")
  output = jax.eval_shape(module.apply, variables, images)
  assert output.features["stage2"].shape == (2, 2, 2, 16)
  assert set(output.preactivations) == {"stem", "stage1", "stage3"}


@pytest.mark.parametrize(
  ("teacher", "teacher_stage", "size"),
  [
    (MLP((6, 5), 3), "stage1", None),
    # The teacher's tokens are a grid of 4x4, the student's map is 2x2.
    (VisionTransformer(2, 8, 2, (1, 1, 1), 3), "stage2", (4, 4)),
    (VisionTransformer(8, 8, 2, (1, 1, 1), 3), "stage2", (1, 1)),
  ],
  ids=["mlp", "finer-vit", "coarser-vit"],
)
def test_teacher_features_may_be_vectors_or_tokens_of_any_grid(
  parts, images, teacher, teacher_stage, size
):
  projector = Projector(size, teacher.channels[teacher_stage], layout="1x1", activation=False)
  weights = drawn(projector, jnp.ones((1, 2, 2, 16)), train=False, seed=2)
  module, variables = reuse_classifier(
    parts[0],
    Network(projector, weights),
    Network(teacher, drawn(teacher, images, seed=3)),
    teacher_stage=teacher_stage,
    image_shape=IMAGE,
  )

  @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
  def run(variables, images):
    output = module.apply(variables, images)
    resumed = [
      module.apply(variables, output.features[stage], stage, method="resume").logits
      for stage in ("stage1", teacher_stage)
    ]
    projected = output.features[teacher_stage]
    # The teacher's variables suffice for the layers after its stage.
    own = {"params": variables["params"].get("teacher", {})}
    return output, resumed, teacher.apply(own, projected, teacher_stage, method="resume").logits

  output, resumed, expected = run(variables, images)
  assert set(output.features) == set(module.stages)
  grid = () if size is None else np.minimum(size, (2, 2))
  assert output.features[teacher_stage].shape == (2, *grid, teacher.channels[teacher_stage])
  later = teacher.stages[teacher.stages.index(teacher_stage) :]
  assert module.signed_stages == (later if isinstance(teacher, VisionTransformer) else ())
  for logits in (*resumed, expected):
    np.testing.assert_allclose(output.logits, logits, rtol=1e-4, atol=1e-5)
  assert np.ptp(output.logits, axis=0).max() > 1e-3


def test_signed_stages_are_those_of_the_network_of_each_stage():
  signed = models.create("wrn_10_1", num_classes=3)
  assert ReusedClassifier(signed, PROJECTOR, TEACHER).signed_stages == ("stem", "stage1", "stage2")
  assert ReusedClassifier(STUDENT, PROJECTOR, signed).signed_stages == ("stage3",)


def test_reused_classifier_can_be_the_teacher_of_another(network, parts, output):
  module, variables = reuse_classifier(*parts[:2], network, image_shape=IMAGE)
  assert set(variables["params"]["teacher"]) == {"teacher"}
  head = variables["params"]["teacher"]["teacher"]["classifier"]
  assert head["kernel"] is parts[2].variables["params"]["classifier"]["kernel"]
  rest = module.apply(variables, output.features["stage3"], "stage3", method="resume")
  np.testing.assert_allclose(rest.logits, output.logits, rtol=1e-5)


def test_one_module_as_student_and_teacher_has_two_sets_of_variables(parts, images):
  other = Network(TEACHER, drawn(TEACHER, images, seed=4))
  same = Bridge(32)
  projector = Network(same, drawn(same, jnp.ones((1, 2, 2, 32))))
  network = reuse_classifier(other, projector, parts[2], image_shape=IMAGE)
  assert set(network.variables["params"]) == {"student", "projector", "teacher"}


def test_variables_of_another_architecture_raise_config_errors(parts):
  student, projector, teacher = parts
  wrong = Network(STUDENT, teacher.variables)
  with pytest.raises(
    ConfigError, match=r"student_variables: \S+ is of shape \(.*\), not of shape \("
  ):
    reuse_classifier(wrong, projector, teacher, image_shape=IMAGE)
  with pytest.raises(ConfigError, match=r"teacher_variables: params/classifier/\w+ is missing"):
    reuse_classifier(student, projector, Network(TEACHER, {}), image_shape=IMAGE)


def test_unknown_stages_raise_config_errors(parts):
  for role in ("student_stage", "teacher_stage"):
    with pytest.raises(ConfigError, match=f"unknown {role} 'stage5'"):
      reuse_classifier(*parts, image_shape=IMAGE, **{role: "stage5"})


def test_projected_map_of_wrong_width_is_refused(parts):
  student, projector, teacher = parts
  narrow = Network(Bridge(8), projector.variables)
  with pytest.raises(ValueError, match=r"'stage3' must be \(B, H, W, 32\), not \(1, 2, 2, 8\)"):
    reuse_classifier(student, narrow, teacher, image_shape=IMAGE)


def test_tapped_teacher_is_refused(parts):
  teacher = tap(TEACHER, {"stage3": "stage3_0"}, logits=lambda output: output.logits)
  with pytest.raises(NotImplementedError, match="a tapped CifarResNet cannot resume"):
    reuse_classifier(*parts[:2], Network(teacher, parts[2].variables), image_shape=IMAGE)


# Several teachers.

TEACHERS = {name: models.create(f"resnet8_w{w}", num_classes=3) for name, w in (("a", 8), ("b", 4))}
PROJECTORS = {"a": Projector((2, 2), 32, layout="1x1"), "b": Projector((2, 2), 16, layout="1x1")}
SHARES = {"a": 0.25, "b": 0.75}
OPTIONS = {"shares": SHARES, "image_shape": IMAGE}


@pytest.fixture(scope="module")
def parts_of_two(images):
  maps = jnp.ones((1, 2, 2, 16))
  return (
    Network(STUDENT, drawn(STUDENT, images, seed=1)),
    {k: Network(p, drawn(p, maps, train=False, seed=2)) for k, p in PROJECTORS.items()},
    {k: Network(t, drawn(t, images, seed=3)) for k, t in TEACHERS.items()},
  )


def reuse_both(parts_of_two, **options):
  return reuse_classifiers(*parts_of_two, **OPTIONS, **options)


@pytest.fixture(scope="module")
def network_of_two(parts_of_two):
  return reuse_both(parts_of_two)


@pytest.fixture(scope="module")
def output_of_two(network_of_two, images):
  return jit(network_of_two.module.apply)(network_of_two.variables, images)


def test_logits_of_two_teachers_are_the_weighted_mean(parts_of_two, output_of_two, images):
  student, projectors, teachers = parts_of_two
  each = [
    reuse_classifier(student, projectors[name], teachers[name], image_shape=IMAGE)
    for name in ("a", "b")
  ]
  a, b = jit(lambda x: [n.module.apply(n.variables, x).logits for n in each])(images)
  np.testing.assert_allclose(output_of_two.logits, 0.25 * a + 0.75 * b, rtol=1e-5, atol=1e-6)
  assert not np.allclose(a, b)


def test_variables_of_two_teachers_have_the_encoder_once(network_of_two, parts_of_two):
  params = network_of_two.variables["params"]
  assert set(params) == {"student", "projectors_a", "projectors_b", "teachers_a", "teachers_b"}
  assert set(params["student"]) == set(parts_of_two[0].variables["params"]) - {"classifier"}
  assert set(params["teachers_a"]) == {"classifier"}
  kernel = parts_of_two[2]["a"].variables["params"]["classifier"]["kernel"]
  assert params["teachers_a"]["classifier"]["kernel"] is kernel


def test_training_leaves_the_batch_statistics_of_two_teachers_unchanged(parts_of_two):
  early = {"student_stage": "stage2", "teacher_stage": "stage2"}
  bridges = {"a": Projector((4, 4), 16, layout="1x1"), "b": Projector((4, 4), 8, layout="1x1")}
  maps = jnp.ones((1, 4, 4, 8))
  networks = {name: Network(p, drawn(p, maps, train=False)) for name, p in bridges.items()}
  module, variables = reuse_classifiers(
    parts_of_two[0], networks, parts_of_two[2], **OPTIONS, **early
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
def test_encode_and_resume_with_two_teachers_agree(stage, network_of_two, output_of_two, images):
  module, variables = network_of_two
  assert module.stages == ("stem", "stage1", "stage2", "stage3")
  assert set(output_of_two.features) == set(module.stages)

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
  np.testing.assert_allclose(rest.logits, output_of_two.logits, rtol=1e-4, atol=1e-5)


def test_bundle_keeps_every_teacher_and_its_share(network_of_two, output_of_two, images, tmp_path):
  save_bundle(tmp_path / "student", network_of_two, {"image_shape": list(IMAGE)})
  loaded, _ = load_bundle(tmp_path / "student")
  assert dict(loaded.module.shares) == SHARES
  logits = jit(loaded.module.apply)(loaded.variables, images).logits
  np.testing.assert_allclose(logits, output_of_two.logits, rtol=1e-5, atol=1e-6)


def test_signed_stages_with_two_teachers_are_those_of_the_student():
  student = models.create("wrn_10_1", num_classes=3)
  module = ReusedClassifiers(student, PROJECTORS, TEACHERS, SHARES, student_stage="stage2")
  assert module.signed_stages == ("stem", "stage1", "stage2")


def test_invalid_arguments_for_two_teachers_are_refused(network_of_two, parts_of_two, images):
  for role in ("student_stage", "teacher_stage"):
    with pytest.raises(ConfigError, match=f"unknown {role} 'stage5'"):
      reuse_both(parts_of_two, **{role: "stage5"})
  student, projectors, teachers = parts_of_two
  with pytest.raises(ConfigError, match=r"teachers_b_variables: params/classifier/\w+ is missing"):
    reuse_both((student, projectors, {**teachers, "b": Network(TEACHERS["b"], {})}))
  for method, argument in (("encode", "to_stage"), ("resume", "from_stage")):
    with pytest.raises(ConfigError, match="unknown stage 'pooled'"):
      network_of_two.module.apply(
        network_of_two.variables, images, method=method, **{argument: "pooled"}
      )
