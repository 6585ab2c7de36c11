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
from jaxkd.models import MLP, ReusedClassifier, VisionTransformer, reuse_classifier, tap
from tests.models.drawn import drawn

IMAGE = (8, 8, 1)
STUDENT = models.create("resnet8_w4", num_classes=3)
TEACHER = models.create("resnet8_w8", num_classes=3)


class Bridge(nn.Module):
  """A 1x1 convolution, BN and ReLU: as little of a projector as will do."""

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
    drawn(STUDENT, images, seed=1),
    drawn(PROJECTOR, jnp.ones((1, 2, 2, 16)), seed=2),
    drawn(TEACHER, images, seed=3),
  )


@pytest.fixture(scope="module")
def network(parts):
  return reuse_classifier(STUDENT, PROJECTOR, TEACHER, *parts, image_shape=IMAGE)


@pytest.fixture(scope="module")
def output(network, images):
  return jax.jit(network.module.apply)(network.variables, images)


def test_the_student_s_map_goes_through_projector_and_teacher_s_classifier(output, parts, images):
  student, projector, teacher = parts
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


def test_only_what_runs_is_kept(network, parts):
  params, stats = (network.variables[name] for name in ("params", "batch_stats"))
  assert set(params) == {"student", "projector", "teacher"}
  assert set(params["student"]) == set(parts[0]["params"]) - {"classifier"}
  assert set(params["teacher"]) == {"classifier"}
  assert set(stats) == {"student", "projector"}
  assert params["teacher"]["classifier"]["kernel"] is parts[2]["params"]["classifier"]["kernel"]


@pytest.mark.parametrize("stage", ["stem", "stage1", "stage2", "stage3", "pooled"])
def test_it_resumes_from_each_of_its_stages(stage, network, output):
  module, variables = network
  assert stage in module.stages
  rest = module.apply(variables, output.features[stage], stage, method="resume")
  np.testing.assert_allclose(rest.logits, output.logits, rtol=1e-4, atol=1e-5)
  assert set(rest.features) == set(module.stages[module.stages.index(stage) + 1 :])


def test_it_encodes_up_to_a_stage(network, output, images):
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


def test_resuming_up_to_a_stage_of_a_shared_name_gives_the_teacher_s(network, output):
  module, variables = network
  found = jax.eval_shape(
    lambda v, x: module.apply(v, x, "stage1", to_stage="stage3", method="resume"),
    variables,
    output.features["stage1"],
  )
  assert found.features["stage3"].shape == output.features["stage3"].shape


def test_an_earlier_stage_reuses_more_of_the_teacher(parts, images):
  student, _, teacher = parts
  bridge = Bridge(16)
  wide = drawn(bridge, jnp.ones((1, 4, 4, 8)))
  module, variables = reuse_classifier(
    STUDENT,
    bridge,
    TEACHER,
    student,
    wide,
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
  # The teacher stays in evaluation mode when the rest trains.
  before, after = variables["batch_stats"], moved["batch_stats"]
  jax.tree.map(np.testing.assert_array_equal, before["teacher"], after["teacher"])
  assert not np.allclose(before["student"]["stem_bn"]["mean"], after["student"]["stem_bn"]["mean"])
  assert not np.allclose(before["projector"]["bn"]["mean"], after["projector"]["bn"]["mean"])


def test_of_two_stages_of_one_name_the_teacher_s_is_kept(parts, images):
  bridge = Bridge(16)
  wide = drawn(bridge, jnp.ones((1, 2, 2, 16)))
  module, variables = reuse_classifier(
    STUDENT,
    bridge,
    TEACHER,
    parts[0],
    wide,
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
    # Its tokens are a grid of 4x4, the student's map is 2x2.
    (VisionTransformer(2, 8, 2, (1, 1, 1), 3), "stage2", (4, 4)),
    (VisionTransformer(8, 8, 2, (1, 1, 1), 3), "stage2", (1, 1)),
  ],
  ids=["mlp", "finer-vit", "coarser-vit"],
)
def test_vectors_and_tokens_of_any_grid_can_be_the_teacher_s(
  parts, images, teacher, teacher_stage, size
):
  projector = Projector(size, teacher.channels[teacher_stage], layout="1x1", activation=False)
  weights = drawn(projector, jnp.ones((1, 2, 2, 16)), train=False, seed=2)
  module, variables = reuse_classifier(
    STUDENT,
    projector,
    teacher,
    parts[0],
    weights,
    drawn(teacher, images, seed=3),
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
    # The teacher's variables alone must do for what follows its stage.
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


def test_each_stage_has_both_signs_where_its_own_network_says_so():
  signed = models.create("wrn_10_1", num_classes=3)
  assert ReusedClassifier(signed, PROJECTOR, TEACHER).signed_stages == ("stem", "stage1", "stage2")
  assert ReusedClassifier(STUDENT, PROJECTOR, signed).signed_stages == ("stage3",)


def test_a_distilled_student_teaches_in_its_turn(network, parts, output):
  module, variables = reuse_classifier(
    STUDENT, PROJECTOR, network.module, *parts[:2], network.variables, image_shape=IMAGE
  )
  assert set(variables["params"]["teacher"]) == {"teacher"}
  head = variables["params"]["teacher"]["teacher"]["classifier"]
  assert head["kernel"] is parts[2]["params"]["classifier"]["kernel"]
  rest = module.apply(variables, output.features["stage3"], "stage3", method="resume")
  np.testing.assert_allclose(rest.logits, output.logits, rtol=1e-5)


def test_one_module_in_two_roles_keeps_two_sets_of_weights(parts, images):
  other = drawn(TEACHER, images, seed=4)
  same = Bridge(32)
  weights = drawn(same, jnp.ones((1, 2, 2, 32)))
  network = reuse_classifier(TEACHER, same, TEACHER, other, weights, parts[2], image_shape=IMAGE)
  assert set(network.variables["params"]) == {"student", "projector", "teacher"}


def test_variables_of_another_architecture_are_named(parts):
  student, projector, teacher = parts
  with pytest.raises(
    ConfigError, match=r"student_variables: \S+ is of shape \(.*\), not of shape \("
  ):
    reuse_classifier(STUDENT, PROJECTOR, TEACHER, teacher, projector, teacher, image_shape=IMAGE)
  with pytest.raises(ConfigError, match=r"teacher_variables: params/classifier/\w+ is missing"):
    reuse_classifier(STUDENT, PROJECTOR, TEACHER, student, projector, {}, image_shape=IMAGE)


def test_unknown_stages_are_named(parts):
  for role in ("student_stage", "teacher_stage"):
    with pytest.raises(ConfigError, match=f"unknown {role} 'stage5'"):
      reuse_classifier(STUDENT, PROJECTOR, TEACHER, *parts, image_shape=IMAGE, **{role: "stage5"})


def test_a_projected_map_the_teacher_cannot_take_is_named(parts):
  with pytest.raises(ValueError, match=r"'stage3' must be \(B, H, W, 32\), not \(1, 2, 2, 8\)"):
    reuse_classifier(STUDENT, Bridge(8), TEACHER, *parts, image_shape=IMAGE)


def test_a_tapped_teacher_says_that_it_cannot_be_reused(parts):
  teacher = tap(TEACHER, {"stage3": "stage3_0"}, logits=lambda output: output.logits)
  with pytest.raises(NotImplementedError, match="a tapped CifarResNet cannot resume"):
    reuse_classifier(STUDENT, PROJECTOR, teacher, *parts, image_shape=IMAGE)
