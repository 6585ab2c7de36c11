"""ShuffleNetV1 and V2; tests/test_golden_models.py compares V2 with published code."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.errors import ConfigError
from jaxkd.models import ShuffleNetV1, ShuffleNetV2
from jaxkd.models.layers import channel_shuffle
from jaxkd.models.zoo.shufflenet import SplitBlock
from tests.models.drawn import drawn
from tests.models.plain_layers import convolved, normalised, rectified


class TestShuffleNetV1:
  def test_equals_a_reference_of_loops(self):
    stem, widths, blocks, groups = 12, (36, 48, 60), (2, 1, 1), 3
    model = ShuffleNetV1(stem=stem, widths=widths, blocks=blocks, groups=groups, num_classes=3)
    images = np.random.default_rng(0).normal(size=(1, 8, 9, 1)).astype(np.float32)
    variables = drawn(model, images)
    output = jax.jit(model.apply)(variables, images)

    def layer(x, *path, stride=1, groups=1):
      kernel = variables["params"]
      for part in path:
        kernel = kernel[part]
      *module, name = path
      return normalised(
        convolved(x, kernel["kernel"], stride, groups),
        variables,
        *module,
        name.replace("conv", "bn"),
      )

    x = rectified(layer(images, "stem_conv"))
    np.testing.assert_allclose(output.features["stem"], x, rtol=1e-4, atol=1e-5)
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True), 1):
      for i in range(count):
        block, inputs = f"stage{stage}_{i}", x.shape[-1]
        inner = (width - inputs if i == 0 else width) // 4
        first = 1 if inputs == stem else groups
        y = rectified(layer(x, block, "conv1", groups=first))
        assert y.shape[-1] == inner
        y = y[..., [g * (inner // first) + j for j in range(inner // first) for g in range(first)]]
        y = rectified(layer(y, block, "conv2", stride=2 if i == 0 else 1, groups=inner))
        y = layer(y, block, "conv3", groups=groups)
        if i == 0:
          ninths = np.full((3, 3, 1, inputs), 1 / 9)
          y = np.concatenate([y, convolved(x, ninths, 2, groups=inputs)], axis=-1)
        else:
          y = y + x
        x = rectified(y)
      np.testing.assert_allclose(output.preactivations[f"stage{stage}"], y, rtol=1e-4, atol=1e-4)
      np.testing.assert_allclose(output.features[f"stage{stage}"], x, rtol=1e-4, atol=1e-4)
    classifier = variables["params"]["classifier"]
    logits = x.mean((1, 2)) @ classifier["kernel"] + classifier["bias"]
    np.testing.assert_allclose(output.logits, logits, rtol=1e-4, atol=1e-4)

  def test_channels_that_the_groups_do_not_divide_are_refused(self):
    model = ShuffleNetV1(stem=12, widths=(24, 40, 48), blocks=(1, 1, 1), groups=3, num_classes=2)
    with pytest.raises(ConfigError, match="must be multiples of 12, four times its groups, not 40"):
      jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))


class TestShuffleNetV2:
  @pytest.mark.parametrize(
    ("name", "widths"),
    [
      ("shufflenetv2_x0.5", (48, 96, 192)),
      ("shufflenetv2", (116, 232, 464)),
      ("shufflenetv2_x1.5", (176, 352, 704)),
    ],
  )
  def test_sizes_are_the_published_ones(self, name, widths):
    model = models.create(name, num_classes=10)
    assert tuple(model.channels.values()) == (24, *widths, 1024)

  @pytest.mark.parametrize("halve", [False, True])
  def test_feature_is_its_preactivation_rectified_and_shuffled(self, halve):
    block = SplitBlock(6, halve=halve)
    x = jax.random.uniform(jax.random.key(0), (2, 5, 4, 6))
    feature, preactivation = jax.jit(block.apply)(drawn(block, x), x)
    assert feature.shape == ((2, 3, 2, 6) if halve else (2, 5, 4, 6))
    assert jnp.min(preactivation) < 0
    expected = channel_shuffle(jax.nn.relu(preactivation), 2)
    np.testing.assert_allclose(feature, expected, rtol=1e-5, atol=1e-6)

  def test_block_leaves_half_of_the_channels_unchanged(self):
    block = SplitBlock(6)
    # Input of both signs, as after a resume: no ReLU is applied to the unchanged half.
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 6))
    feature, preactivation = jax.jit(block.apply)(drawn(block, x), x)
    np.testing.assert_array_equal(feature[..., ::2], x[..., :3])
    np.testing.assert_array_equal(preactivation[..., :3], x[..., :3])
    assert jnp.min(feature[..., 1::2]) == 0

  def test_odd_widths_are_refused(self):
    model = ShuffleNetV2(stem=4, widths=(8, 9, 12), blocks=(1, 1, 1), last_width=8, num_classes=2)
    with pytest.raises(ConfigError, match="must be even numbers, not 9"):
      jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))


def test_initial_convolutions_have_the_deviation_of_pytorchs_defaults():
  block = SplitBlock(256)
  params = jax.jit(block.init)(jax.random.key(0, impl="rbg"), jnp.ones((1, 1, 1, 256)))["params"]
  for name, incoming in (("conv1", 128), ("conv2", 9), ("conv3", 128)):
    bound = incoming**-0.5
    kernel = params[name]["kernel"]
    assert 0.98 * bound < np.max(np.abs(kernel)) <= bound
    assert np.std(kernel) == pytest.approx(bound / np.sqrt(3), rel=0.05)
