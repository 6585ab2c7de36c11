"""NetAug: masked channels are the narrower network, which learns and is exported alone."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config
from jaxkd.methods.netaug import augmented
from jaxkd.models import create
from jaxkd.models.compose.channels import first_channels, masked_channels
from jaxkd.models.compose.widened import Widened
from jaxkd.models.zoo.mobilenet import MobileNetV2
from jaxkd.models.zoo.resnet import CifarResNet
from jaxkd.networks import infer, select
from jaxkd.train import TrainState, make_optimizer, training_step
from jaxkd.types import Batch
from tests.methods.one_step import jit
from tests.test_bad_input import dataset, settings_for
from tests.train.test_resume import Broken, StopAfter, assert_same, train

WIDTHS, EXPANSIONS = (1.0, 1.5, 2.5), (1.0, 1.3)
RESNET = CifarResNet(1, (2, 2, 3, 4), 3)
MOBILENET = MobileNetV2(0.1, (1, 1, 1, 1, 1, 1, 1), 7, 3)
IMAGES = {RESNET: (4, 6, 6, 1), MOBILENET: (2, 16, 16, 1)}
each = pytest.mark.parametrize(
  "base", [RESNET, pytest.param(MOBILENET, marks=pytest.mark.long)], ids=["resnet", "mobilenet"]
)


@functools.cache
def widened(base):
  return Widened(base, WIDTHS, EXPANSIONS)


def images(base, seed=0):
  return jnp.float32(np.random.default_rng(seed).standard_normal(IMAGES[base]))


@functools.cache
def variables(base):
  """Variables of the widest network, with scales, biases and statistics that are not 0 or 1."""
  drawn = jit(lambda key: widened(base).wide.init(key, images(base)))(jax.random.key(0))
  leaves, structure = jax.tree.flatten(drawn)
  rng = np.random.default_rng(1)
  return jax.tree.unflatten(structure, [x + jnp.float32(0.1 * rng.random(x.shape)) for x in leaves])


def drawn_at(base, seed):
  counts = widened(base).draw(jax.random.key(seed))
  return {name: int(count) for name, count in counts.items()}


def narrow(base, counts):
  """The network of exactly these channels, built without masks."""
  wide, plan = widened(base).wide, widened(base).plan
  inner = tuple(counts[f"{b.name}/{plan.layers.inner[-1]}"] for b in plan.blocks)
  after = [counts[f"{b.name}/{plan.layers.outer[0]}"] for b in plan.blocks]
  if base is RESNET:
    return wide.clone(widths=(counts["stem_bn"], *after), inner=inner)
  return wide.clone(
    stem=counts["stem_bn"], outputs=tuple(after), inner=inner, last_width=counts["last_bn"]
  )


@pytest.mark.long
@each
def test_masked_channels_are_the_narrower_network_in_value_and_gradient(base):
  network, x = widened(base), images(base)
  counts = drawn_at(base, 3)
  small = narrow(base, counts)
  shapes = jax.eval_shape(small.init, jax.random.key(0), x)
  assert shapes != jax.eval_shape(network.wide.init, jax.random.key(0), x)

  def masked(params, counts):
    with masked_channels(counts):
      given = {**variables(base), "params": params}
      output, _ = network.wide.apply(given, x, train=True, mutable=["batch_stats"])
    return jnp.sum(jnp.sin(output.logits)), output

  def cut(params):
    given = first_channels({**variables(base), "params": params}, shapes)
    output, _ = small.apply(given, x, train=True, mutable=["batch_stats"])
    return jnp.sum(jnp.sin(output.logits)), output

  params = variables(base)["params"]
  (_, ours), gradient = jit(jax.value_and_grad(masked, has_aux=True))(params, counts)
  (_, theirs), expected = jit(jax.value_and_grad(cut, has_aux=True))(params)
  np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)
  chex.assert_trees_all_close(gradient, expected, rtol=1e-3, atol=1e-5)
  for stage, feature in ours.features.items():
    kept = theirs.features[stage].shape[-1]
    assert not np.any(feature[..., kept:]), stage

  def outside(leaf, like):
    leaf = np.array(leaf)
    leaf[tuple(slice(n) for n in like.shape)] = 0
    return leaf.any()

  assert not any(jax.tree.leaves(jax.tree.map(outside, gradient, shapes["params"])))


@each
def test_first_channels_of_the_wide_network_are_the_network(base):
  own = widened(base).own(variables(base))
  want = jax.eval_shape(base.init, jax.random.key(0), images(base))
  assert jax.tree.map(jnp.shape, own) == jax.tree.map(lambda x: x.shape, want)
  counts = widened(base).draw(jax.random.key(0), wider=False)
  for block in widened(base).plan.blocks:
    layers = widened(base).plan.layers
    assert counts[f"{block.name}/{layers.outer[0]}"] == block.after
    inner = int(counts[f"{block.name}/{layers.inner[-1]}"])
    choices = {int(block.inner * e + 0.5) for e in EXPANSIONS}
    assert inner in choices


@each
def test_widths_are_drawn_from_the_lists_and_residual_blocks_keep_their_inputs(base):
  network, seen = widened(base), {}
  for seed in range(40):
    counts = drawn_at(base, seed)
    before = counts["stem_bn"]
    for block in network.plan.blocks:
      layers = network.plan.layers
      after = counts[f"{block.name}/{layers.outer[0]}"]
      inner = {counts[f"{block.name}/{x}"] for x in layers.inner if "bn" in x}
      assert len(inner) == 1
      assert not block.residual or after == before
      assert after in {int(block.after * w + 0.5) for w in WIDTHS}
      width = block.inner / block.before * before
      assert inner <= {int(width * e + 0.5) for e in EXPANSIONS}
      seen.setdefault(block.name, set()).add((after, *inner))
      before = after
  assert all(len(found) > 2 for found in seen.values())


def test_sorting_changes_no_output_at_full_width_and_puts_the_largest_first():
  network, x = widened(RESNET), images(RESNET)
  order = network.sorted_order(variables(RESNET)["params"])
  ordered = network.ordered(variables(RESNET), order)
  run = jit(network.wide.apply)
  np.testing.assert_allclose(
    run(ordered, x).logits, run(variables(RESNET), x).logits, rtol=1e-5, atol=1e-6
  )
  for block in network.plan.blocks:
    kernel = np.abs(ordered["params"][block.name]["conv2"]["kernel"])
    sums = kernel.sum((0, 1, 3))
    assert np.all(np.diff(sums) <= 1e-5) and np.ptp(sums) > 0.01
  same = network.with_own(
    variables(RESNET)["batch_stats"], network.own(ordered)["batch_stats"], order
  )
  chex.assert_trees_all_equal(same, variables(RESNET)["batch_stats"])


def batch(size=8):
  rng = np.random.default_rng(0)
  x = jnp.float32(rng.standard_normal((size, 6, 6, 1)))
  return Batch(x, jnp.arange(size) % 3, jnp.ones(size), jnp.arange(size))


SCHEME = augmented(widened(RESNET), random_steps=4, sort_every=2)


def state_of(scheme, optimizer, step=0):
  everyone = jit(scheme.init)(jax.random.key(0), batch())
  first = optimizer.init(select(everyone, scheme.learners))
  return TrainState(jnp.int32(step), jax.random.key_data(jax.random.key(0)), everyone, first)


@functools.cache
def stepped(devices=1, parts=1, count=2):
  """States after each of some updates; networks whose statistics are of all devices."""
  base = RESNET.clone(axis_name="batch" if devices > 1 else None)
  scheme = augmented(Widened(base, WIDTHS, EXPANSIONS), random_steps=4, sort_every=2)
  sgd = make_optimizer("sgd", optax.constant_schedule(0.1))
  options = {"axis_name": "batch" if devices > 1 else None, "accumulate": parts}
  step = training_step(scheme, sgd, lambda keys, data: data, **options)
  if devices > 1:
    step = jax.vmap(step, in_axes=(None, 0), axis_name="batch")
  data = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]) if devices > 1 else x, batch())
  states, found = state_of(scheme, sgd), []
  for _ in range(count):
    states, metrics = jit(step)(states, data)
    if devices > 1:
      states, metrics = jax.tree.map(lambda x: x[0], (states, metrics))
    found.append((states, metrics))
  return found


@pytest.mark.long
def test_an_update_sorts_draws_and_keeps_statistics_of_the_network_alone():
  [(after, metrics), _] = stepped()
  student = after.participants["student"]
  begun = jit(SCHEME.init)(jax.random.key(0), batch())["student"]
  order = widened(RESNET).sorted_order(begun["params"])
  chex.assert_trees_all_equal(student["order"], order)
  assert {"labels_logit", "augmented_logit", "loss"} <= metrics.keys()
  own = RESNET.apply(
    widened(RESNET).own({k: v for k, v in widened(RESNET).ordered(
      {k: begun[k] for k in ("params", "batch_stats")}, order).items()}),
    batch().inputs,
    train=True,
    mutable=["batch_stats"],
  )[1]["batch_stats"]  # fmt: skip
  exported = SCHEME.export(after.participants)["student"]
  assert type(exported.module) is CifarResNet and exported.module == RESNET
  chex.assert_trees_all_close(exported.variables["batch_stats"], own, rtol=1e-4, atol=1e-6)
  shapes = jax.eval_shape(RESNET.init, jax.random.key(0), batch().inputs)
  assert jax.tree.map(jnp.shape, exported.variables) == jax.tree.map(lambda x: x.shape, shapes)
  predicted = SCHEME.predict(after.participants, batch().inputs)["student"]
  np.testing.assert_array_equal(predicted, infer(*exported, batch().inputs).logits)


@pytest.mark.long
def test_all_devices_draw_the_same_network():
  for (ours, found), (theirs, metrics) in zip(stepped(4), stepped(), strict=True):
    chex.assert_trees_all_close(ours.participants, theirs.participants, rtol=1e-3, atol=1e-4)
    total, count = found["augmented_logit"]
    np.testing.assert_allclose(total / count, metrics["augmented_logit"][0], rtol=1e-4)


@pytest.mark.long
def test_parts_of_a_batch_draw_the_same_network():
  [(state, _)] = stepped(parts=2, count=1)
  chex.assert_trees_all_equal(
    state.participants["student"]["order"], stepped()[0][0].participants["student"]["order"]
  )
  begun = jit(SCHEME.init)(jax.random.key(0), batch())["student"]["params"]
  used = [
    (one.participants["student"]["params"]["stem_conv"]["kernel"] != begun["stem_conv"]["kernel"])
    for one in (state, stepped()[0][0])
  ]
  np.testing.assert_array_equal(*(np.any(moved, (0, 1, 2)) for moved in used))


@pytest.mark.long
def test_resumes_exactly_with_its_order(tmp_path):
  net = CifarResNet(1, (2, 2, 3, 4), 3, axis_name="devices")
  made = {
    "scheme": augmented(Widened(net, WIDTHS, EXPANSIONS), random_steps=9, sort_every=3),
    "average_decay": None,
  }
  whole = train(tmp_path / "whole", **made)
  with pytest.raises(Broken):
    train(tmp_path / "cut", StopAfter(7), checkpoint_seconds=0.0, **made)
  assert_same(train(tmp_path / "cut", **made).participants, whole.participants)


def test_config_trains_the_networks_that_it_can_make_wider():
  settings = settings_for("netaug")
  settings.student.model = "resnet8_w4"
  config.check_config(settings)
  [alone, distilled] = build.phases(settings, dataset(), traced=False)
  assert (alone.name, distilled.name, distilled.role) == ("alone", "distilled", "student")
  assert "2.6 times its channels" in distilled.notes[0]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"student": "vgg8_w8"}, "method 'netaug' trains a CifarResNet or a MobileNetV2 of images"),
    ({"widths": (1.5, 2.0)}, r"^method.widths=\(1.5, 2.0\): expected rising numbers that start"),
    ({"expansions": ()}, r"^method.expansions=\(\): expected rising numbers that start with 1"),
  ],
)
def test_what_does_not_fit_is_refused_in_one_line(changes, message):
  settings = settings_for("netaug")
  settings.student.model = changes.pop("student", "resnet8_w4")
  settings.method.update(changes)
  with pytest.raises(ConfigError, match=message) as caught:
    build.phases(settings, dataset(), traced=False)
  assert "\n" not in str(caught.value)


@pytest.mark.long
def test_published_widths_of_a_mobilenet_are_those_of_its_inverted_residuals():
  network = Widened(create("mobilenetv2", num_classes=10), (1.0, 1.8, 2.6), (1.0, 1.6, 2.2, 2.8))
  first = network.plan.blocks[3]
  assert (first.before, first.inner, first.after, first.residual) == (12, 72, 16, False)
  counts = network.draw(jax.random.key(0), wider=False)
  assert int(counts["blocks_2_0/project_bn"]) == 16
  assert int(counts["blocks_2_0/expand_bn"]) in {72, 115, 158, 202}
  fields = {field.name for field in dataclasses.fields(network.base)}
  assert {"stem", "outputs", "inner"}.isdisjoint(fields)
