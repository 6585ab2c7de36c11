"""MobileNetV1 and V2; tests/test_golden_models.py compares V2 with published code."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.evaluate import multiply_adds
from jaxkd.models import MobileNetV1, MobileNetV2
from jaxkd.models.torch.names import module_path
from jaxkd.models.zoo.mobilenet import InvertedResidual
from tests.models.drawn import drawn
from tests.models.plain_layers import convolved, normalised, rectified


class TestMobileNetV1:
  def test_has_the_published_size_features_and_module_names(self):
    model = models.create("imagenet_mobilenetv1", num_classes=1000)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    output, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 4_231_976
    # 569 million in the paper.
    assert multiply_adds(model.apply, variables, image) == 568_740_352
    assert [output.features[stage].shape[1:] for stage in model.stages] == [
      (112, 112, 64),
      (56, 56, 128),
      (28, 28, 256),
      (14, 14, 512),
      (7, 7, 1024),
      (1024,),
    ]
    # mdistiller's names of modules with weights map to all modules of the model.
    blocks = [f"model.{block}.{layer}" for block in range(1, 14) for layer in (0, 1, 3, 4)]
    named = {
      module_path(name, model.torch_names) for name in ("model.0.0", "model.0.1", *blocks, "fc")
    }
    ours = {
      "/".join(part.key for part in path[:-1])
      for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])
    }
    assert named == ours

  def test_equals_a_reference_of_loops(self):
    model = MobileNetV1(stem=2, widths=(4, 4, 4, 4, 6), blocks=(2, 1, 1, 1), num_classes=3)
    images = np.random.default_rng(0).normal(size=(1, 32, 35, 1)).astype(np.float32)
    variables = drawn(model, images)
    output = jax.jit(model.apply)(variables, images)

    params = variables["params"]
    x = convolved(images, params["stem_conv"]["kernel"], 2)
    x = rectified(normalised(x, variables, "stem_bn"))
    ends = {1: "stem", 3: "stage1", 4: "stage2", 5: "stage3", 6: "stage4"}
    for k in range(1, 7):
      block = params[f"block_{k}"]
      stride = 1 if k in (1, 3) else 2
      x = convolved(x, block["depthwise_conv"]["kernel"], stride, groups=x.shape[-1])
      x = rectified(normalised(x, variables, f"block_{k}", "depthwise_bn"))
      x = convolved(x, block["project_conv"]["kernel"])
      x = normalised(x, variables, f"block_{k}", "project_bn")
      if k in ends:
        np.testing.assert_allclose(output.preactivations[ends[k]], x, rtol=1e-4, atol=1e-5)
      x = rectified(x)
      if k in ends:
        np.testing.assert_allclose(output.features[ends[k]], x, rtol=1e-4, atol=1e-5)
    logits = x.mean((1, 2)) @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(output.logits, logits, rtol=1e-4, atol=1e-5)


class TestMobileNetV2:
  @pytest.mark.parametrize(
    ("width", "channels"),
    [(0.5, (16, 12, 16, 48, 160, 1280)), (1, (32, 24, 32, 96, 320, 1280))],
  )
  def test_width_scales_all_but_the_last_channels(self, width, channels):
    name = {0.5: "mobilenetv2", 1: "mobilenetv2_x1"}[width]
    assert tuple(models.create(name, num_classes=10).channels.values()) == channels

  def test_signed_stages_have_negative_features(self):
    model = MobileNetV2(width=0.25, repeats=(1,) * 7, last_width=8, num_classes=3)
    images = jax.random.normal(jax.random.key(0), (2, 16, 17, 1))
    variables = drawn(model, images, to_stage="stage2", method="encode")
    encode = jax.jit(lambda *inputs: model.apply(*inputs, to_stage="stage2", method="encode"))
    output = encode(variables, images)
    signed = {stage for stage, feature in output.features.items() if jnp.min(feature) < 0}
    # stage3 and stage4 have the same structure as stage1 and stage2.
    assert signed == set(model.signed_stages) - {"stage3", "stage4"} == {"stage1", "stage2"}
    for stage in signed:
      np.testing.assert_array_equal(output.preactivations[stage], output.features[stage])

  @pytest.mark.parametrize(
    ("stride", "width", "adds"), [(1, 2, True), (1, 4, False), (2, 2, False)]
  )
  def test_block_adds_its_input_if_the_shape_is_unchanged(self, stride, width, adds):
    block = InvertedResidual(width, expansion=3, stride=stride)
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 2))
    variables = drawn(block, x)
    # The output of the branch is the last bias.
    variables["params"]["project_bn"]["scale"] *= 0
    bias = variables["params"]["project_bn"]["bias"]
    y = jax.jit(block.apply)(variables, x)
    expected = x + bias.reshape(1, 1, 1, -1) if adds else np.broadcast_to(bias, y.shape)
    assert y.shape == (1, 4 // stride, 4 // stride, width)
    np.testing.assert_allclose(y, expected, rtol=1e-6)

  def test_initial_weights_have_the_deviation_of_the_published_code(self):
    model = MobileNetV2(width=1, repeats=(1,) * 7, last_width=64, num_classes=50)

    @jax.jit
    def fresh(key):
      block = InvertedResidual(8, expansion=64, stride=1).init(key, jnp.ones((1, 1, 1, 8)))
      last = model.init(key, jnp.ones((1, 64)), "pooled", method="resume")
      return block["params"], last["params"]["classifier"]

    block, classifier = fresh(jax.random.key(0, impl="rbg"))
    for name, outgoing in (("expand", 512), ("depthwise", 9 * 512), ("project", 8)):
      spread = np.std(block[f"{name}_conv"]["kernel"])
      assert spread == pytest.approx(np.sqrt(2 / outgoing), rel=0.06)
    assert np.std(classifier["kernel"]) == pytest.approx(0.01, rel=0.06)
    np.testing.assert_array_equal(classifier["bias"], 0)
