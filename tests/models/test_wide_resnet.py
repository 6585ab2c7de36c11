from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.models import WideResNet
from tests.models.drawn import drawn

MODEL = WideResNet(blocks=1, widths=(4, 4, 8, 16), num_classes=3)
RAW = ("stem", "stage1", "stage2", "stage3")
# The BN that reads the feature of each stage.
OPENING = dict(zip(RAW, ("stage1_0/bn1", "stage2_0/bn1", "stage3_0/bn1", "last_bn"), strict=True))


@pytest.fixture(scope="module")
def images():
  return jax.random.normal(jax.random.key(0), (4, 8, 8, 1))


@pytest.fixture(scope="module")
def variables(images):
  return drawn(MODEL, images)


@pytest.fixture(scope="module")
def output(variables, images):
  return jax.jit(MODEL.apply)(variables, images)


def test_model_names_give_depth_and_factor():
  found = [name for name in models.names() if name.startswith("wrn")]
  assert len(found) == 7
  for name in found:
    depth, factor = map(int, name.split("_")[1:])
    model = models.create(name, num_classes=5)
    assert 6 * model.blocks + 4 == depth
    assert model.widths == (16, 16 * factor, 32 * factor, 64 * factor)


def test_wrn_28_10_has_the_published_36_5_million_parameters():
  model = models.create("wrn_28_10", num_classes=10)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
  assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) / 1e6, 1) == 36.5


def test_every_feature_but_pooled_has_both_signs(output):
  assert MODEL.signed_stages == RAW
  assert {stage for stage, x in output.features.items() if jnp.min(x) < 0} == set(RAW)


def test_preactivations_are_the_features_after_the_next_stages_batch_norm(variables, output):
  assert set(output.preactivations) == set(RAW)
  for stage, path in OPENING.items():
    weights, stats = variables["params"], variables["batch_stats"]
    for part in path.split("/"):
      weights, stats = weights[part], stats[part]
    scale = weights["scale"] / np.sqrt(stats["var"] + 1e-5)
    shift = weights["bias"] - stats["mean"] * scale
    feature = np.asarray(output.features[stage])
    expected = feature * scale[None, None, None] + shift[None, None, None]
    np.testing.assert_allclose(output.preactivations[stage], expected, rtol=1e-4, atol=1e-5)
  pooled = np.maximum(output.preactivations["stage3"], 0).mean((1, 2))
  np.testing.assert_allclose(output.features["pooled"], pooled, rtol=1e-5, atol=1e-6)


def test_stage_that_normalises_a_feature_returns_its_preactivation(images, variables):
  def found(*arguments, **options):
    rest = jax.eval_shape(lambda: MODEL.apply(variables, *arguments, **options))
    return set(rest.features), set(rest.preactivations)

  early = found(images, to_stage="stage1", method="encode")
  assert early == ({"stem", "stage1"}, {"stem"})
  late = found(jnp.ones((1, 4, 4, 8)), "stage2", method="resume")
  assert late == ({"stage3", "pooled"}, {"stage2", "stage3"})


def test_only_blocks_that_change_the_shape_have_a_shortcut_convolution(images):
  shapes = jax.eval_shape(
    WideResNet(blocks=2, widths=(4, 4, 8, 16), num_classes=3).init, jax.random.key(0), images
  )["params"]
  assert {name for name, part in shapes.items() if "shortcut_conv" in part} == {
    "stage2_0",
    "stage3_0",
  }
  assert shapes["stage2_0"]["shortcut_conv"].keys() == {"kernel"}


def test_initial_classifier_has_zero_bias_and_pytorchs_kernel():
  model = WideResNet(blocks=1, widths=(4, 4, 8, 64), num_classes=400)
  fresh = jax.jit(lambda key: model.init(key, jnp.ones((1, 64)), "pooled", method="resume"))
  classifier = fresh(jax.random.key(0))["params"]["classifier"]
  assert not np.any(classifier["bias"])
  assert 0.98 / 8 < np.max(np.abs(classifier["kernel"])) <= 1 / 8
  assert np.std(classifier["kernel"]) == pytest.approx(1 / 8 / np.sqrt(3), rel=0.05)
