"""MultiExit, with_exits and the heads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxkd import models
from jaxkd.errors import ConfigError
from jaxkd.models import (
  AttentionExit,
  BottleneckExit,
  ConvExit,
  LinearExit,
  MultiExit,
  ProjectedExit,
  plain_network,
  with_exits,
)
from jaxkd.types import Output
from tests.methods.one_step import assert_all_moved, assert_all_zero, assert_same, jit
from tests.models.drawn import drawn, optimized_jit
from tests.tiny import TinyNet

IMAGE = (6, 6, 1)
NETWORK = TinyNet()
# The heads are not in the order of the stages.
EXITS = MultiExit(
  NETWORK, {"stage2": LinearExit(3), "stage1": ProjectedExit(3, 8, (3, 3))}, "stage2"
)


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).normal(size=(4, *IMAGE)).astype(np.float32)


@pytest.fixture(scope="module")
def variables(images):
  return drawn(EXITS, images)


@pytest.fixture(scope="module")
def outputs(variables, images):
  return optimized_jit(EXITS.apply)(variables, images)


def shaped(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_variables_are_those_of_the_network_and_of_each_head(variables, images):
  assert set(variables["params"]) == {"network", "heads_stage1", "heads_stage2"}
  assert set(variables["batch_stats"]) == {"network", "heads_stage1"}
  plain = drawn(NETWORK, images)
  found = {name: tree["network"] for name, tree in variables.items()}
  assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, plain)


def test_exits_follow_the_stages_and_the_deepest_is_the_plain_network(variables, outputs, images):
  assert EXITS.num_exits == len(outputs) == 3
  assert EXITS.exit_stages == ("stage1", "stage2")
  first, second, deepest = outputs
  assert first.features["hint"].shape == (4, 3, 3, 8)
  assert set(first.features) == set(second.features) == {"hint", "pooled"}
  assert set(deepest.features) == {*EXITS.stages, "hint"}
  np.testing.assert_array_equal(deepest.features["hint"], deepest.features["stage2"])
  # The head on stage2 has the same input as the network's own classifier.
  np.testing.assert_allclose(second.features["pooled"], deepest.features["pooled"], rtol=1e-6)

  network, plain = plain_network(EXITS, variables)
  expected = optimized_jit(network.apply)(plain, images)
  np.testing.assert_array_equal(deepest.logits, expected.logits)
  assert_same(dict(deepest.preactivations), dict(expected.preactivations))
  features = {name: deepest.features[name] for name in EXITS.stages}
  assert_same(features, dict(expected.features))


def test_running_blocks_one_by_one_equals_the_whole_network(variables, outputs, images):
  carry = images
  for index, expected in enumerate(outputs):
    run = optimized_jit(lambda v, c, i=index: EXITS.apply(v, c, i, method="run_block"))
    carry, output = run(variables, carry)
    assert all(leaf.shape[0] == 4 for leaf in jax.tree.leaves(carry))
    np.testing.assert_array_equal(output.logits, expected.logits)
    for name, value in output.features.items():
      np.testing.assert_array_equal(value, expected.features[name])


@pytest.mark.parametrize(
  ("block", "own"),
  [
    (0, {"network": {"conv1", "bn1"}, "heads_stage1": {"conv", "bn", "classifier"}}),
    (1, {"network": {"conv2", "bn2"}, "heads_stage2": {"classifier"}}),
    (2, {"network": {"classifier"}}),
  ],
)
def test_run_block_uses_variables_of_its_block_and_exit_only(block, own, images):
  carry = [images, np.ones((1, 6, 6, 4)), np.ones((1, 3, 3, 8))][block]
  found = jax.eval_shape(
    lambda c: EXITS.init(jax.random.key(0), c, block, method="run_block"), carry
  )
  assert {part: set(tree) for part, tree in found["params"].items()} == own


def test_loss_of_a_head_has_gradients_for_earlier_layers_only(variables, images):
  def loss(params):
    changed = {**variables, "params": params}
    outputs, moved = EXITS.apply(changed, images, train=True, mutable=["batch_stats"])
    return (outputs[0].logits ** 2).sum(), moved["batch_stats"]

  found, moved = jit(jax.grad(loss, has_aux=True))(variables["params"])
  for part in (found["network"]["conv1"], found["heads_stage1"]["classifier"]):
    assert np.any(part["kernel"] != 0)
  deeper = (found["network"][name] for name in ("conv2", "bn2", "classifier"))
  assert_all_zero([found["heads_stage2"], *deeper])
  assert_all_moved(variables["batch_stats"], moved)


def test_without_heads_the_network_is_the_only_exit():
  module = MultiExit(NETWORK, {}, "pooled")
  (output,), variables = jax.eval_shape(
    lambda: module.init_with_output(jax.random.key(0), jnp.ones((2, *IMAGE)))
  )
  assert module.num_exits == 1
  assert set(variables["params"]) == {"network"}
  assert set(output.features) == {*NETWORK.stages, "hint"}


@pytest.mark.parametrize("size", [(28, 28), (7, 9)])
def test_projected_and_bottleneck_hints_have_the_shape_of_the_deepest_map(size):
  network = models.create("resnet8_w4", num_classes=3)
  images = jnp.ones((2, *size, 1))
  output = jax.eval_shape(
    lambda: network.init_with_output(jax.random.key(0), images)[0],
  )
  stages = ("stage1", "stage2", "stage3")
  for kind in ("projected", "bottleneck"):
    module = with_exits(network, output, stages, kind=kind, num_classes=3)
    found = jax.eval_shape(lambda m=module: m.init_with_output(jax.random.key(0), images)[0])
    for exit in found:
      assert exit.logits.shape == (2, 3)
      assert exit.features["hint"].shape == output.features["stage3"].shape
      assert exit.features["pooled"].shape == (2, 16)


def test_attention_hints_are_vectors_and_the_last_head_has_none():
  network = models.create("resnet8_w4", num_classes=3)
  images = jnp.ones((2, 7, 9, 1))
  output = jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), images)[0])
  module = with_exits(network, output, ("stage2", "stage1"), kind="attention", num_classes=3)
  found, variables = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), images))
  first, last, deepest = found
  assert first.features["hint"].shape == deepest.features["hint"].shape == (2, 16)
  assert "hint" not in last.features
  assert last.features["pooled"].shape == (2, 16)
  head = variables["params"]["heads_stage1"]
  # Channels double from stage1's 4 to 8 and 16; the attention keeps 4.
  widths = {
    name: part["pointwise2"]["kernel"].shape[-1] for name, part in head.items() if "sep" in name
  }
  assert widths == {"separable1": 8, "separable2": 16}
  assert head["attention"]["pointwise2"]["kernel"].shape == (1, 1, 4, 4)


def test_hint_stage_of_linear_and_conv_exits_is_pooled():
  network = models.create("resnet8_w4", num_classes=3)
  images = jnp.ones((2, 8, 8, 1))
  output = jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), images)[0])
  for kind, width in (("linear", 4), ("conv", 128)):
    module = with_exits(network, output, ["stage1"], kind=kind, num_classes=3)
    assert module.hint_stage == "pooled"
    found = jax.eval_shape(lambda m=module: m.init_with_output(jax.random.key(0), images)[0])
    assert found[0].features["hint"].shape == (2, width)
    assert found[0].logits.shape == (2, 3)


class Stages(nn.Module):
  """Stage names without layers: with_exits reads the sizes of heads from shapes."""

  stages = ("stage1", "stage2", "stage3", "stage4", "pooled")

  def encode(self):
    pass

  def resume(self):
    pass


def test_strides_and_halvings_are_the_published_ones():
  sizes = {"stage1": (32, 64), "stage2": (16, 128), "stage3": (8, 256), "stage4": (4, 512)}
  maps = {stage: shaped(2, size, size, width) for stage, (size, width) in sizes.items()}
  output = Output(features={**maps, "pooled": shaped(2, 512)})

  def heads(kind):
    options = {"kind": kind, "num_classes": 100}
    return with_exits(Stages(), output, ["stage3", "stage1", "stage2"], **options).heads

  strides = {stage: head.stride for stage, head in heads("bottleneck").items()}
  assert strides == {"stage1": (8, 8), "stage2": (4, 4), "stage3": (2, 2)}
  attention = {s: (head.halvings, head.adapt) for s, head in heads("attention").items()}
  assert attention == {"stage1": (3, True), "stage2": (2, True), "stage3": (1, False)}
  assert {head.width for head in heads("attention").values()} == {512}


def test_options_reach_the_heads(images):
  output = jax.eval_shape(lambda: NETWORK.init_with_output(jax.random.key(0), images)[0])
  options = {"num_classes": 3, "axis_name": "devices", "dtype": jnp.bfloat16}
  for kind in ("linear", "conv", "projected", "bottleneck", "attention"):
    (head,) = with_exits(NETWORK, output, ["stage1"], kind=kind, **options).heads.values()
    assert (head.axis_name, head.dtype, head.num_classes) == ("devices", jnp.bfloat16, 3)


MAP = np.abs(np.random.default_rng(1).normal(size=(2, 5, 4, 3))).astype(np.float32)


def applied(head, **changed):
  """The head's output and parameters, with all variables of some names set to a value."""

  def replace(path, leaf):
    found = [value for name, value in changed.items() if name in jax.tree_util.keystr(path)]
    return np.full_like(leaf, found[0]) if found else leaf

  variables = jax.tree_util.tree_map_with_path(replace, drawn(head, MAP))
  return jit(head.apply)(variables, MAP), variables["params"]


def dense(x, layer):
  return x @ layer["kernel"] + layer["bias"][None]


def test_linear_exit_classifies_the_mean():
  output, params = applied(LinearExit(3))
  np.testing.assert_allclose(
    output.logits, dense(MAP.mean((1, 2)), params["classifier"]), rtol=1e-4
  )
  np.testing.assert_array_equal(output.features["hint"], output.features["pooled"])


def test_projected_exit_classifies_the_mean_of_its_hint():
  head = ProjectedExit(3, 6, (5, 4))
  output, params = applied(head, mean=0, var=1 - 1e-5, scale=1, bias=0.25)
  hint = np.maximum(MAP @ params["conv"]["kernel"][0, 0] + 0.25, 0)
  np.testing.assert_allclose(output.features["hint"], hint, rtol=1e-4, atol=1e-6)
  expected = dense(hint.mean((1, 2)), params["classifier"])
  np.testing.assert_allclose(output.logits, expected, rtol=1e-4, atol=1e-5)


def test_bottleneck_exit_pads_sizes_that_its_stride_does_not_divide():
  output, params = applied(BottleneckExit(3, 8, (2, 2)))
  assert output.features["hint"].shape == (2, 3, 2, 8)
  assert params["conv2"]["kernel"].shape == (2, 2, 2, 2)
  expected = dense(output.features["hint"].mean((1, 2)), params["classifier"])
  np.testing.assert_allclose(output.logits, expected, rtol=1e-4, atol=1e-5)


def test_attention_exit_weighs_the_input_map():
  head = AttentionExit(3, 7, halvings=0)
  # With scale 0 the normalisation returns its bias everywhere; the attention is its sigmoid.
  outputs = applied(head, scale=0, bias=0)[0], applied(head, scale=0, bias=0.7)[0]
  for output, share in zip(outputs, (0.5, 1 / (1 + np.exp(-0.7))), strict=True):
    np.testing.assert_allclose(output.features["pooled"], share * MAP.mean((1, 2)), rtol=1e-5)
    assert output.features["hint"].shape == (2, 7)


def test_conv_exit_has_two_convolutions_and_classifies_their_mean():
  output, params = applied(ConvExit(3, 6))
  assert [params[name]["kernel"].shape for name in ("conv1", "conv2")] == [
    (3, 3, 3, 6),
    (3, 3, 6, 6),
  ]
  expected = dense(output.features["pooled"], params["classifier"])
  np.testing.assert_allclose(output.logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "head",
  [ConvExit(3), ProjectedExit(3, 4, (2, 2)), BottleneckExit(3, 4, (1, 1)), AttentionExit(3, 4, 0)],
)
def test_heads_for_maps_refuse_vectors(head):
  with pytest.raises(ConfigError, match=rf"{type(head).__name__}: features \(2, 5\) are not"):
    head.init(jax.random.key(0), jnp.ones((2, 5)))


@pytest.mark.parametrize(
  ("module", "message"),
  [
    (MultiExit(nn.Dense(3), {}, "pooled"), "MultiExit: a Dense has no stages"),
    (MultiExit(NETWORK, {"stage3": LinearExit(3)}, "pooled"), "unknown stage of a head 'stage3'"),
    (MultiExit(NETWORK, {"stage1": LinearExit(3)}), "unknown hint_stage 'stage3'"),
    (
      MultiExit(NETWORK, {"stage2": LinearExit(3)}, "stage1"),
      "'stage1' comes before the last head's",
    ),
  ],
)
def test_invalid_stages_raise_config_errors(module, message, images):
  with pytest.raises(ConfigError, match=message):
    jax.eval_shape(module.init, jax.random.key(0), images)


def test_missing_blocks_raise_config_errors(variables, images):
  for block in (-1, 3):
    with pytest.raises(ConfigError, match=f"block {block}: there are blocks 0 to 2"):
      EXITS.apply(variables, images, block, method="run_block")
  with pytest.raises(ConfigError, match="params/network is missing"):
    plain_network(EXITS, {"params": {}})


def test_invalid_arguments_of_with_exits_raise_config_errors():
  maps = {"stage1": shaped(2, 7, 7, 4), "stage2": shaped(2, 5, 5, 8), "pooled": shaped(2, 8)}

  def build(stages, kind="linear", network=NETWORK, classes=3, features=maps):
    return with_exits(network, Output(features=features), stages, kind=kind, num_classes=classes)

  for message, call in {
    "unknown kind of exit 'lineal': did you mean 'linear'": lambda: build(["stage1"], "lineal"),
    "unknown stage for a conv exit: 'stage9'": lambda: build(["stage9"], "conv"),
    "stages for linear exits are ..: they must be one or more of stage1, ": lambda: build([]),
    "none twice": lambda: build(["stage1", "stage1"]),
    r"stage 'pooled': no conv exit on features \(2, 8\)": lambda: build(["pooled"], "conv"),
    "stage 'stage1': no bottleneck exit .* no stride": lambda: build(["stage1"], "bottleneck"),
    "stage 'stage1': no attention exit .* halving does": lambda: build(["stage1"], "attention"),
    "num_classes must be at least 1, not 0": lambda: build(["stage1"], classes=0),
    "a Dense has no stages": lambda: build(["stage1"], network=nn.Dense(3)),
    "projected exits: the network gives no map": lambda: build(
      ["pooled"], "projected", features={"pooled": shaped(2, 8)}
    ),
  }.items():
    with pytest.raises(ConfigError, match=message):
      call()
  # Pooling reaches any size from any map.
  assert build(["stage1"], "projected").heads["stage1"].size == (5, 5)
