from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxkd import models
from jaxkd.errors import ConfigError
from jaxkd.evaluate import multiply_adds
from jaxkd.models import CifarResNet, ResNet
from jaxkd.models.torch.names import module_path
from jaxkd.models.zoo.resnet import Bottleneck
from tests.models.drawn import drawn, optimized_jit

MODEL = models.create("resnet8_w4", num_classes=3)


@pytest.fixture(scope="module")
def images():
  return jax.random.normal(jax.random.key(0), (16, 8, 8, 1))


@pytest.fixture(scope="module")
def variables(images):
  return drawn(MODEL, images)


@pytest.fixture(scope="module")
def output(variables, images):
  return optimized_jit(MODEL.apply)(variables, images)


def test_stages_are_the_features_shallow_to_deep(output):
  assert MODEL.stages == ("stem", "stage1", "stage2", "stage3", "pooled")
  assert set(output.features) == set(MODEL.stages)
  assert [output.features[stage].shape[1:] for stage in MODEL.stages] == [
    (8, 8, 4),
    (8, 8, 4),
    (4, 4, 8),
    (2, 2, 16),
    (16,),
  ]


def test_features_are_the_preactivations_after_relu(output):
  assert set(output.preactivations) == set(MODEL.stages) - {"pooled"}
  for stage, preactivation in output.preactivations.items():
    assert jnp.min(preactivation) < 0
    np.testing.assert_array_equal(output.features[stage], np.maximum(preactivation, 0))


@pytest.mark.parametrize("stage", ["stem", "stage2"])  # others: test_every_model.py
def test_resume_equals_the_whole_network(stage, variables, images):
  # In float64: the rounding of two float32 programs depends on the processor.
  with jax.enable_x64(True):
    variables, images = jax.tree.map(np.float64, (variables, images))
    output = jax.jit(MODEL.apply)(variables, images)
    feature = output.features[stage]
    rest = jax.jit(lambda v, x: MODEL.apply(v, x, stage, method="resume"))(variables, feature)
  assert feature.dtype == rest.logits.dtype == np.float64
  later = MODEL.stages[MODEL.stages.index(stage) + 1 :]
  assert set(rest.features) == set(later)
  np.testing.assert_allclose(rest.logits, output.logits, rtol=1e-9, atol=1e-10)
  for name in later:
    np.testing.assert_allclose(rest.features[name], output.features[name], rtol=1e-9, atol=1e-10)


def test_resume_and_encode_use_variables_of_their_layers_only(images):
  def layers(*arguments, **options):
    return set(
      jax.eval_shape(lambda: MODEL.init(jax.random.key(0), *arguments, **options))["params"]
    )

  early = {"stem_conv", "stem_bn", "stage1_0"}
  assert layers(images, to_stage="stage1", method="encode") == early
  late = layers(jnp.ones((1, 2, 2, 8)), "stage2", method="resume")
  assert late == {"stage3_0", "classifier"}
  assert layers(jnp.ones((1, 16)), "pooled", method="resume") == {"classifier"}
  assert layers(images) == early | {"stage2_0"} | late


def test_resume_stops_at_to_stage(variables, output):
  rest = MODEL.apply(variables, output.features["stem"], "stem", to_stage="stage1", method="resume")
  assert set(rest.features) == {"stage1"}
  assert rest.logits is None
  with pytest.raises(ConfigError, match="'stem' comes before from_stage 'stage1'"):
    MODEL.apply(variables, rest.features["stage1"], "stage1", to_stage="stem", method="resume")


@pytest.mark.parametrize("shape", [(4, 4, 1), (5, 7, 2), (9, 4, 3), (28, 28, 1)])
def test_images_of_any_size_from_4x4_and_any_channel_count_are_accepted(shape):
  result = jax.eval_shape(lambda: MODEL.init_with_output(jax.random.key(0), jnp.ones((2, *shape))))
  height, width = -(-shape[0] // 4), -(-shape[1] // 4)
  assert result[0].features["stage3"].shape == (2, height, width, 16)
  assert result[0].logits.shape == (2, 3)


def test_stem_stride_halves_every_map_at_a_quarter_of_the_cost():
  images = jax.ShapeDtypeStruct((2, 16, 16, 1), jnp.float32)

  def of(name):
    model = models.create(name, num_classes=3)
    output, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    cost = multiply_adds(lambda v, x: model.apply(v, x).logits, variables, images)
    return output, variables, cost

  plain, variables, cost = of("resnet8_w4")
  strided, others, less = of("resnet8_w4_s2")
  for stage, feature in plain.features.items():
    batch, *space, channels = feature.shape
    assert strided.features[stage].shape == (batch, *(n // 2 for n in space), channels)
  # The same network except for its stride: the variables fit both.
  assert variables == others
  # The cost of the classifier does not change.
  assert 0.25 < less / cost < 0.251


@pytest.mark.parametrize(
  ("images", "message"),
  [
    (jnp.ones((2, 3, 8, 1)), "3x8 are too small: this model takes 4x4 and larger"),
    (jnp.ones((8, 8, 1)), r"images must be \(B, H, W, C\), not \(8, 8, 1\)"),
    (jnp.ones((2, 8, 8, 1), jnp.uint8), "normalised and floating point, not uint8"),
  ],
)
def test_invalid_images_are_refused(images, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(MODEL.init, jax.random.key(0), images)


@pytest.mark.parametrize(
  ("stage", "shape", "message"),
  [
    ("stage4", (2, 2, 2, 16), "unknown stage 'stage4'"),
    ("stage3", (2, 2, 2, 8), r"'stage3' must be \(B, H, W, 16\), not \(2, 2, 2, 8\)"),
    ("stage3", (2, 16), r"'stage3' must be \(B, H, W, 16\), not \(2, 16\)"),
    ("pooled", (2, 2, 2, 16), r"'pooled' must be \(B, 16\), not \(2, 2, 2, 16\)"),
  ],
)
def test_resume_refuses_invalid_features(stage, shape, message, variables):
  with pytest.raises(ValueError, match=message):
    MODEL.apply(variables, jnp.ones(shape), stage, method="resume")


def test_bfloat16_computes_in_bfloat16_and_keeps_variables_in_float32(variables, images, output):
  model = models.create("resnet8_w4", num_classes=3, dtype=jnp.bfloat16)
  fresh = jax.eval_shape(model.init, jax.random.key(0), images)
  assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}

  @jax.jit
  def both(variables, images):
    trained = model.apply(variables, images, train=True, mutable=["batch_stats"])
    return model.apply(variables, images), *trained

  evaluated, trained, updated = both(variables, images)
  computed = jax.tree.leaves((evaluated, trained))
  assert {leaf.dtype for leaf in computed} == {jnp.dtype("bfloat16")}
  assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype("float32")}
  np.testing.assert_allclose(evaluated.logits, output.logits, atol=0.05)


def test_float64_stays_float64():
  with jax.enable_x64(True):
    shapes = jax.eval_shape(
      MODEL.init_with_output, jax.random.key(0), jnp.ones((2, 8, 8, 1), jnp.float64)
    )[0]
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float64")}


def test_batch_statistics_over_devices_equal_those_of_the_whole_batch(variables, images):
  shared = models.create("resnet8_w4", num_classes=3, axis_name="devices")
  devices = jax.local_device_count()
  assert devices == 8

  def train(model):
    def forward(variables, images):
      output, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
      return output.logits, updated["batch_stats"]

    return forward

  mapped = jax.pmap(train(shared), axis_name="devices", in_axes=(None, 0))
  parts = np.asarray(images).reshape(devices, -1, *images.shape[1:])
  logits, stats = mapped(variables, parts)
  expected, updated = jax.jit(train(MODEL))(variables, images)

  # Replicas are equal bit by bit; otherwise they would diverge.
  for leaf in map(np.asarray, jax.tree.leaves(stats)):
    np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
  logits = np.asarray(logits).reshape(expected.shape)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
  for many, one in zip(jax.tree.leaves(stats), jax.tree.leaves(updated), strict=True):
    np.testing.assert_allclose(many[0], one, rtol=1e-4, atol=1e-6)


def test_initial_weights_have_the_deviation_of_pytorch():
  model = CifarResNet(blocks=1, widths=(64, 64, 64, 64), num_classes=400)

  @jax.jit
  def fresh(key):
    first = model.init(key, jnp.ones((1, 4, 4, 3)), to_stage="stem", method="encode")
    last = model.init(key, jnp.ones((1, 64)), "pooled", method="resume")
    return first["params"]["stem_conv"]["kernel"], last["params"]["classifier"]

  stem, classifier = fresh(jax.random.key(0))
  # By fan-out, not by fan-in.
  assert np.std(stem) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.05)
  for leaf in classifier.values():
    assert 0.98 / 8 < np.max(np.abs(leaf)) <= 1 / 8
    assert np.std(leaf) == pytest.approx(1 / 8 / np.sqrt(3), rel=0.1)


# ResNet: four stages, small images or ImageNet.

# Parameters and multiply-adds of torchvision's models, for 224x224 images and 1000 classes.
PUBLISHED = {
  "imagenet_resnet18": (11_689_512, 1_814_073_344),
  "imagenet_resnet34": (21_797_672, 3_663_761_408),
  "imagenet_resnet50": (25_557_032, 4_089_184_256),
}
BLOCKS = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 6, 3)}
IMAGE = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
LARGE = ResNet((1, 1, 1, 1), 2, bottleneck=False, imagenet=True, num_classes=3)
SMALL = ResNet((1, 1, 1, 1), 2, bottleneck=False, imagenet=False, num_classes=3)


@functools.cache
def imagenet(name):
  model = models.create(name, num_classes=1000)
  return model, jax.eval_shape(model.init, jax.random.key(0), IMAGE)


@pytest.mark.parametrize("name", PUBLISHED)
def test_imagenet_models_have_the_published_parameters_and_multiply_adds(name):
  model, variables = imagenet(name)
  count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
  assert (count, multiply_adds(model.apply, variables, IMAGE)) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_torchvision_module_names_map_to_all_modules_of_the_model(name):
  model, variables = imagenet(name)
  layers = 3 if name.endswith("50") else 2
  theirs = ["conv1", "bn1", "fc"]
  for stage, blocks in enumerate(BLOCKS[name[-2:]], 1):
    for block in range(blocks):
      parts = [f"{kind}{i}" for i in range(1, layers + 1) for kind in ("conv", "bn")]
      if block == 0 and (stage > 1 or layers == 3):
        parts += ["downsample.0", "downsample.1"]
      theirs += [f"layer{stage}.{block}.{part}" for part in parts]
  found = sorted(module_path(their, model.torch_names) for their in theirs)
  ours = jax.tree_util.tree_leaves_with_path(variables["params"])
  assert found == sorted({"/".join(key.key for key in path[:-1]) for path, _ in ours})


@pytest.mark.parametrize(
  ("model", "size", "sizes"),
  [
    (SMALL, 8, (8, 8, 4, 2, 1)),
    (SMALL, 33, (33, 33, 17, 9, 5)),
    (LARGE, 8, (4, 2, 1, 1, 1)),
    (LARGE, 65, (33, 17, 9, 5, 3)),
  ],
)
def test_imagenet_stem_reduces_the_image_by_four_more(model, size, sizes):
  images = jnp.ones((2, size, size, 1))
  output, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
  assert tuple(output.features[stage].shape[1] for stage in model.stages[:-1]) == sizes
  assert output.features["pooled"].shape == (2, 16)


def test_imagenet_max_pool_is_between_stem_and_stage1():
  feature = np.random.default_rng(0).uniform(0, 1, (2, 5, 6, 2)).astype("f4")
  variables = drawn(LARGE, jnp.ones((1, 8, 8, 1)))
  padded = np.pad(feature, ((0, 0), (1, 1), (1, 1), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2]

  def stage1(model, x):
    rest = jax.jit(
      lambda variables, x: model.apply(variables, x, "stem", to_stage="stage1", method="resume")
    )(variables, x)
    return rest.features["stage1"]

  found = stage1(LARGE, feature)
  assert found.shape == (2, 3, 3, 2)
  # After their stems the two models have the same layers.
  expected = stage1(SMALL, windows.max((-2, -1)))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_bottleneck_is_three_convolutions_with_the_stride_on_the_second():
  block = Bottleneck(8, stride=2, project=True)
  x = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype("f4")
  variables = drawn(block, x)

  def layer(variables, x, conv, bn, stride=1):
    kernel = variables["params"][conv]["kernel"]
    pad = (kernel.shape[0] // 2,) * 2
    axes = ("NHWC", "HWIO", "NHWC")
    x = lax.conv_general_dilated(x, kernel, (stride, stride), (pad, pad), dimension_numbers=axes)
    weights, stats = variables["params"][bn], variables["batch_stats"][bn]
    mean, var, scale, bias = (
      part[None, None, None]
      for part in (stats["mean"], stats["var"], weights["scale"], weights["bias"])
    )
    return (x - mean) * lax.rsqrt(var + 1e-5) * scale + bias

  @jax.jit
  def both(variables, x):
    y = jax.nn.relu(layer(variables, x, "conv1", "bn1"))
    y = jax.nn.relu(layer(variables, y, "conv2", "bn2", stride=2))
    y = layer(variables, y, "conv3", "bn3")
    expected = y + layer(variables, x, "downsample_conv", "downsample_bn", stride=2)
    return block.apply(variables, x), expected

  found, expected = both(variables, x)
  assert found.shape == (2, 3, 3, 8)
  assert variables["params"]["conv2"]["kernel"].shape == (3, 3, 2, 2)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("blocks", [(3, 4, 6), (2, 2, 0, 2)])
def test_resnet_requires_four_stages_with_at_least_one_block(blocks):
  with pytest.raises(ConfigError, match=r"blocks=.* expected 4 numbers of at least 1"):
    ResNet(blocks, 64, bottleneck=False, imagenet=False, num_classes=3)
