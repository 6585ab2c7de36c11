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
from jaxkd.models import ResNet
from jaxkd.models.torch.load import module_path
from jaxkd.models.zoo.resnet import Bottleneck
from tests.models.drawn import drawn

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
def test_imagenet_models_have_the_published_parameters_and_multiplications(name):
  model, variables = imagenet(name)
  count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
  assert (count, multiply_adds(model.apply, variables, IMAGE)) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_torchvisions_modules_are_all_of_the_model(name):
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
def test_stems_differ_in_how_much_they_reduce_the_image(model, size, sizes):
  images = jnp.ones((2, size, size, 1))
  output, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
  assert tuple(output.features[stage].shape[1] for stage in model.stages[:-1]) == sizes
  assert output.features["pooled"].shape == (2, 16)


def test_imagenets_max_pool_lies_between_the_stem_and_stage1():
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
  # Behind their stems the two have the same layers.
  expected = stage1(SMALL, windows.max((-2, -1)))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_bottleneck_is_three_convolutions_with_the_stride_on_the_second():
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
def test_it_has_four_stages_with_a_block_each(blocks):
  with pytest.raises(ConfigError, match=r"blocks=.* expected 4 numbers of at least 1"):
    ResNet(blocks, 64, bottleneck=False, imagenet=False, num_classes=3)
