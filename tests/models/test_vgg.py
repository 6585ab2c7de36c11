from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.errors import ConfigError
from jaxkd.models import VGG
from tests.models.drawn import drawn

MODEL = VGG((1, 1, 1, 2, 1), (2, 3, 4, 5, 6), num_classes=3)


def test_vgg_names_give_the_published_number_of_layers():
  found = [name for name in models.names() if name.startswith("vgg")]
  assert len(found) == 6
  for name in found:
    depth, _, width = name.removeprefix("vgg").partition("_w")
    model = models.create(name, num_classes=5)
    # The paper's depth includes three linear layers at the end.
    assert sum(model.depths) + 3 == int(depth)
    assert model.widths == tuple(int(width or 64) * factor for factor in (1, 2, 4, 8, 8))


def test_every_convolution_has_a_bias_and_a_norm():
  shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.ones((1, 8, 8, 1)))["params"]
  assert set(shapes) == {"stem", "stage1", "stage2", "stage3", "stage4", "classifier"}
  assert set(shapes["stage3"]) == {"conv1", "bn1", "conv2", "bn2"}
  assert shapes["stage3"]["conv2"]["kernel"].shape == (3, 3, 5, 5)
  assert shapes["stage3"]["conv2"]["bias"].shape == (5,)


@pytest.mark.parametrize(
  ("size", "sizes"),
  [
    ((8, 8), [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]),
    ((32, 32), [(32, 32), (16, 16), (8, 8), (4, 4), (4, 4)]),
    ((64, 64), [(64, 64), (32, 32), (16, 16), (8, 8), (4, 4)]),
    ((9, 64), [(9, 64), (4, 32), (2, 16), (1, 8), (1, 8)]),
  ],
)
def test_stage4_halves_maps_of_at_least_8x8_only(size, sizes):
  images = jnp.ones((2, *size, 1))
  output, _ = jax.eval_shape(MODEL.init_with_output, jax.random.key(0), images)
  maps = [output.features[stage].shape for stage in MODEL.stages]
  assert maps == [
    *((2, *rows, width) for rows, width in zip(sizes, MODEL.widths, strict=True)),
    (2, 6),
  ]


def test_max_pool_is_between_a_feature_and_the_next_stage():
  feature = np.random.default_rng(0).uniform(0.1, 1, (2, 5, 7, 2)).astype("f4")
  variables = drawn(MODEL, jnp.ones((1, 8, 8, 1)))
  # As in PyTorch, the last row or column of an odd number is left out.
  windows = feature[:, :4, :6].reshape(2, 2, 2, 3, 2, 2)
  largest = windows.max((2, 4))
  spread = np.where(windows == largest[:, :, None, :, None], windows, 0)
  only_largest = np.pad(spread.reshape(2, 4, 6, 2), ((0, 0), (0, 1), (0, 1), (0, 0)))
  assert np.count_nonzero(only_largest) == largest.size < feature.size

  @jax.jit
  def stage1(variables, x):
    return MODEL.apply(variables, x, "stem", to_stage="stage1", method="resume").features["stage1"]

  found = stage1(variables, feature)
  assert found.shape == (2, 2, 3, 3)
  np.testing.assert_array_equal(found, stage1(variables, only_largest))
  assert np.any(found != stage1(variables, 0 * feature))


def test_torch_names_count_the_relus():
  (pattern, path), _ = MODEL.torch_names
  names = ["block0.0", "block0.1", "block1.3", "block1.4", "block4.9", "block4.10"]
  found = [path(re.fullmatch(pattern, name)) for name in names]
  assert found == [
    "stem/conv1",
    "stem/bn1",
    "stage1/conv2",
    "stage1/bn2",
    "stage4/conv4",
    "stage4/bn4",
  ]


def test_initial_weights_have_the_deviation_of_the_published_code():
  model = VGG((1,) * 5, (64, 1, 1, 1, 64), num_classes=100)

  @jax.jit
  def fresh(key):
    first = model.init(key, jnp.ones((1, 8, 8, 3)), to_stage="stem", method="encode")
    last = model.init(key, jnp.ones((1, 64)), "pooled", method="resume")
    return first["params"]["stem"]["conv1"], last["params"]["classifier"]

  convolution, classifier = fresh(jax.random.key(0))
  assert np.std(convolution["kernel"]) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.05)
  assert np.std(classifier["kernel"]) == pytest.approx(0.01, rel=0.05)
  assert not np.any(convolution["bias"]) and not np.any(classifier["bias"])


@pytest.mark.parametrize("depths", [(1, 1, 1, 1), (1, 1, 0, 1, 1)])
def test_vgg_requires_five_blocks_with_at_least_one_convolution(depths):
  with pytest.raises(ConfigError, match=r"depths=.* expected 5 numbers of at least 1"):
    VGG(depths, (1,) * 5, num_classes=3)
