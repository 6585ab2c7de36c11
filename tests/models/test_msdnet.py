from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.interpreters.partial_eval import dce_jaxpr

from jaxkd import models
from jaxkd.errors import ConfigError
from jaxkd.evaluate import multiply_adds
from jaxkd.models import MSDNet
from jaxkd.models.zoo.multiscale import plan
from tests.models.drawn import drawn
from tests.torch_weights import msdnet_fields

SPECS = Path(__file__).parent.parent / "golden" / "models" / "specs.json"
TINY = {
  "blocks": 3,
  "base": 1,
  "step": 1,
  "channels": 2,
  "growth_rate": 2,
  "growth_factors": (1, 2),
  "bottleneck_factors": (1, 2),
  "scales": 2,
  "exit_width": 4,
}
MODEL = MSDNet(3, **TINY)


@pytest.fixture(scope="module")
def images():
  return jax.random.normal(jax.random.key(0), (4, 8, 8, 1))


@pytest.fixture(scope="module")
def variables(images):
  return drawn(MODEL, images)


@pytest.fixture(scope="module")
def outputs(variables, images):
  return jax.jit(MODEL.apply)(variables, images)


def test_running_blocks_one_by_one_equals_the_whole_network(variables, images, outputs):
  carry = images
  for block in range(MODEL.num_exits):
    run = jax.jit(lambda v, x, b=block: MODEL.apply(v, x, b, method="run_block"))
    carry, output = run(variables, carry)
    assert set(output.features) == set(MODEL.stages) == {"coarsest", "pooled"}
    assert output.preactivations == {}
    assert output.logits.shape == (4, 3)
    np.testing.assert_array_equal(carry[-1], output.features["coarsest"])
    for found, expected in zip(
      jax.tree.leaves(output), jax.tree.leaves(outputs[block]), strict=True
    ):
      np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_run_block_uses_variables_of_its_block_and_exit_only(variables, images):
  carry, parts = images, []
  for block in range(MODEL.num_exits):

    def init(carry, block=block):
      return MODEL.init_with_output(jax.random.key(0), carry, block, method="run_block")

    (carry, _), own = jax.eval_shape(init, carry)
    parts.append(set(own["params"]))
  assert parts == [
    {"block_0_0", "block_0_1", "exit_0"},
    {"block_1_0", "exit_1"},
    {"block_2_0", "block_2_1", "exit_2"},
  ]
  assert set().union(*parts) == set(variables["params"])


@pytest.mark.parametrize("exit_", range(MODEL.num_exits))
def test_exit_does_not_depend_on_later_blocks_or_other_exits(exit_, variables, images):
  def logits(variables):
    return MODEL.apply(variables, images, train=True, mutable=True)[0][exit_].logits

  # No array is computed: the traced function shows which variables the logits depend on.
  jaxpr = jax.make_jaxpr(logits)(variables).jaxpr
  used = dce_jaxpr(jaxpr, [True])[1]
  names = [path[1].key for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
  reached = {name for name, needed in zip(names, used, strict=True) if needed}
  blocks = {name for name in variables["params"] if name < f"block_{exit_ + 1}"}
  assert reached == blocks | {f"exit_{exit_}"}


def small(shape):
  """msdnet_small with its variables and one image of a shape, after a check of its outputs."""
  model = models.create("msdnet_small", num_classes=7)
  images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  outputs, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
  assert len(outputs) == model.num_exits == 4
  for output in outputs:
    assert output.logits.shape == (1, 7)
    assert output.features["coarsest"].shape[1:3] == (-(-shape[0] // 4), -(-shape[1] // 4))
    assert output.features["pooled"].shape == (1, 32)
  return model.apply, variables, images


def test_images_may_have_odd_sizes_and_any_channel_count():
  small((4, 5, 2))


def test_msdnet_small_has_one_and_a_half_million_multiply_adds():
  assert 1_450_000 < multiply_adds(*small((28, 28, 1))) < 1_550_000


def test_registered_msdnet_is_the_golden_one():
  with np.load(SPECS.parent / "msdnet.npz") as file:
    fields = msdnet_fields(json.loads(str(file["args"])))
  assert models.create("msdnet", num_classes=100) == MSDNet(100, **fields)


@pytest.mark.parametrize(
  ("mode", "base", "step", "expected"),
  [
    ("even", 4, 2, (4, 2, 2, 2, 2)),
    ("even", 2, 1, (2, 1, 1, 1, 1)),
    ("lin_grow", 1, 1, (1, 2, 3, 4, 5)),
    ("lin_grow", 4, 2, (4, 3, 5, 7, 9)),
  ],
)
def test_step_mode_sets_the_number_of_layers_of_each_block(mode, base, step, expected):
  model = MSDNet(2, step_mode=mode, base=base, step=step)
  assert model.layers_per_block == expected


# finest: the finest output scale of every layer; reduced: layer -> units after its reduction.
@pytest.mark.parametrize(
  ("counts", "prune", "finest", "reduced"),
  [
    ((4, 2, 2, 2, 2), "max", [0] * 4 + [1] * 4 + [2] * 4, {4: 23, 8: 23}),
    # A number of layers that 3 does not divide: the last scale gets the remainder.
    ((2, 1, 1, 1), "max", [0, 0, 1, 1, 2], {2: 17, 4: 14}),
    ((2, 5), "min", [0, 0, 0, 0, 0, 1, 2], {1: 14, 3: 13}),
  ],
)
def test_plan_ends_scales_and_reduces_channels_as_prune_says(counts, prune, finest, reduced):
  sizes = {"scales": 3, "channels": 16, "growth_rate": 6, "reduction": 0.5}
  blocks = plan(counts, prune=prune, **sizes)
  assert tuple(map(len, blocks)) == counts
  layers = [layer for block in blocks for layer in block]
  assert [layer.finest for layer in layers] == finest
  assert [layer.drops for layer in layers] == [False, *np.diff(finest).astype(bool)]
  assert {i: x.reduced for i, x in enumerate(layers) if x.reduced is not None} == reduced
  kept = plan(counts, prune=prune, **{**sizes, "reduction": 0.0})
  assert all(layer.reduced is None for block in kept for layer in block)


def test_path_without_bottleneck_is_one_convolution(images):
  model = MSDNet(3, **{**TINY, "bottleneck": False, "prune": "min"})
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  assert set(shapes["block_0_1"]["down_1"]) == {"conv1", "bn1"}
  assert shapes["block_0_1"]["down_1"]["conv1"]["kernel"].shape == (3, 3, 2, 2)


def test_bfloat16_computes_in_bfloat16_and_keeps_variables_in_float32(variables, images, outputs):
  model = MODEL.clone(dtype=jnp.bfloat16)
  fresh = jax.eval_shape(model.init, jax.random.key(0), images)
  trained, updated = jax.eval_shape(
    lambda *inputs: model.apply(*inputs, train=True, mutable=["batch_stats"]), variables, images
  )
  evaluated = jax.jit(model.apply)(variables, images)
  assert {x.dtype for x in jax.tree.leaves((fresh, updated))} == {jnp.dtype("float32")}
  assert {x.dtype for x in jax.tree.leaves((evaluated, trained))} == {jnp.dtype("bfloat16")}
  for found, expected in zip(evaluated, outputs, strict=True):
    np.testing.assert_allclose(found.logits, expected.logits, atol=0.05)


def test_axis_name_reaches_every_batch_norm(variables, images):
  axes = []

  def record(call, args, kwargs, context):
    if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
      axes.append(context.module.axis_name)
    return call(*args, **kwargs)

  with nn.intercept_methods(record):
    jax.eval_shape(MODEL.clone(axis_name="devices").apply, variables, images)
  assert axes == ["devices"] * (len(jax.tree.leaves(variables["batch_stats"])) // 2)


def test_initial_weights_have_the_deviation_of_the_authors_code():
  sizes = {"blocks": 1, "base": 1, "scales": 1, "growth_factors": (1,), "bottleneck_factors": (1,)}
  model = MSDNet(300, channels=64, growth_rate=64, exit_width=64, **sizes)

  @jax.jit
  def fresh(key):
    params = model.init(key, jnp.ones((1, 4, 4, 3)))["params"]
    convolutions = params["block_0_0"]["scale_0"]["conv1"], params["block_0_1"]["normal_0"]["conv1"]
    return *convolutions, params["exit_0"]["classifier"]

  stem, bottleneck, classifier = fresh(jax.random.key(0))
  # By fan-out, not by fan-in.
  assert np.std(stem["kernel"]) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.05)
  assert np.std(bottleneck["kernel"]) == pytest.approx(np.sqrt(2 / 64), rel=0.05)
  assert np.std(classifier["kernel"]) == pytest.approx(1 / 8 / np.sqrt(3), rel=0.05)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"step_mode": "odd"}, "unknown step_mode 'odd'.*known: even, lin_grow"),
    ({"prune": "mean"}, "unknown prune 'mean'.*known: max, min"),
    ({"blocks": 0}, "blocks=0: expected a whole number of at least 1"),
    ({"channels": 1.5}, "channels=1.5: expected a whole number of at least 1"),
    ({"scales": 3}, r"growth_factors=\(1, 2\): expected 3 whole numbers of at least 1, one per"),
    ({"bottleneck_factors": (1, 0)}, r"bottleneck_factors=\(1, 0\): expected 2 whole numbers"),
    ({"growth_factors": 1}, "growth_factors=1: expected 2 whole numbers"),
    ({"growth_rate": 1, "growth_factors": (1, 3)}, "growth_rate=1 times 3 of .* is odd"),
    ({"reduction": 2.0}, "reduction=2.0: it must lie between 0 and 1"),
    ({"reduction": 0.1}, "reduction=0.1 leaves none of 8 channels"),
    (
      {"prune": "min", "blocks": 1, "scales": 4, "growth_factors": (1, 2, 4, 4)}
      | {"bottleneck_factors": (1, 1, 1, 1)},
      "prune='min' drops a scale a layer: scales=4 need at least 3 layers, not 1",
    ),
  ],
)
def test_invalid_fields_raise_config_errors_at_construction(fields, message):
  with pytest.raises(ConfigError, match=message):
    MSDNet(3, **{**TINY, **fields})


@pytest.mark.parametrize(
  ("carry", "block", "message"),
  [
    (jnp.ones((2, 1, 8, 1)), 0, "1x8 are too small: this model takes 2x2 and larger"),
    (jnp.ones((8, 8, 1)), 0, r"images must be \(B, H, W, C\), not \(8, 8, 1\)"),
    (jnp.ones((2, 8, 8, 1), jnp.uint8), 0, "normalised and floating point, not uint8"),
    (jnp.ones((2, 8, 8, 1)), 3, "block 3: this model has blocks 0 to 2"),
    (jnp.ones((2, 8, 8, 1)), -1, "block -1: this model has blocks 0 to 2"),
    (jnp.ones((2, 8, 8, 1)), 1, "block 1 takes the 2 maps of block 0, not an array"),
    ((jnp.ones((2, 4, 4, 4)),), 2, "block 2 takes the 2 maps of block 1, not 1 maps"),
  ],
)
def test_run_block_refuses_invalid_inputs(carry, block, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda: MODEL.init(jax.random.key(0), carry, block, method="run_block"))
