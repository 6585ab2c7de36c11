"""Ensembles, cut exits and gated branches as networks with one output."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.adapters import Gate
from jaxkd.errors import ConfigError
from jaxkd.export.bundles import load_bundle, save_bundle
from jaxkd.losses._numerics import mean_log_probabilities
from jaxkd.models import (
  AtExit,
  Branched,
  Ensemble,
  GatedBranches,
  LinearExit,
  MSDNet,
  MultiExit,
  cut_at_exit,
  ensemble_of,
  exit_ensemble,
  gated_branches,
)
from jaxkd.types import Network
from tests.methods.one_step import assert_same, jit
from tests.models.drawn import drawn, optimized_jit
from tests.tiny import TinyNet

IMAGE = (6, 6, 1)
TINY = {"TinyNet": TinyNet}
EXITS = MultiExit(TinyNet(), {"stage1": LinearExit(3), "stage2": LinearExit(3)}, "pooled")
BRANCHED, GATE = Branched(TinyNet(), 2, "stage1"), Gate(2)


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).normal(size=(4, *IMAGE)).astype(np.float32)


@pytest.fixture(scope="module")
def exits(images):
  variables = drawn(EXITS, images)
  return variables, optimized_jit(EXITS.apply)(variables, images)


@pytest.fixture(scope="module")
def members(images):
  plain = TinyNet(norm=False)
  modules = {"wide": TinyNet(width=6, norm=False), "b": plain, "a": plain}
  drawn_members = {
    name: Network(module, drawn(module, images, seed=seed))
    for seed, (name, module) in enumerate(modules.items())
  }
  run = jit(lambda v, x: {k: modules[k].apply(v[k], x).logits for k in modules})
  return drawn_members, run({k: n.variables for k, n in drawn_members.items()}, images)


def softmax(z):
  z = np.exp(np.float64(z) - np.max(z, -1, keepdims=True))
  return z / z.sum(-1, keepdims=True)


def run(network, images):
  return jit(network.module.apply)(network.variables, images).logits


def reloaded(network, directory):
  """The network after saving and loading a bundle; its variables are unchanged."""
  save_bundle(directory / "b", network, {"image_shape": list(IMAGE)}, modules=TINY)
  loaded, _ = load_bundle(directory / "b", modules=TINY)
  assert_same(loaded.variables, network.variables)
  return loaded


means = jit(lambda z: (mean_log_probabilities(list(z)), mean_log_probabilities(z, [1, 0, 3])))


@given(st.lists(st.floats(-30, 30, width=32), min_size=12, max_size=12))
def test_the_softmax_of_mean_log_probabilities_is_the_mean_of_the_softmaxes(values):
  logits = np.reshape(np.float32(values), (3, 2, 2))
  each = softmax(logits)
  plain, weighted = map(softmax, means(logits))
  np.testing.assert_allclose(plain, each.mean(0), atol=1e-6)
  np.testing.assert_allclose(weighted, 0.25 * each[0] + 0.75 * each[2], atol=1e-6)


def test_mean_log_probabilities_stay_finite_at_zero_probabilities():
  logits = [np.float32([[1e4, 0.0, -1e4]]), np.float32([[2e4, 0.0, 1.0]])]
  value, gradients = jit(jax.value_and_grad(lambda z: mean_log_probabilities(z).sum()))(logits)
  assert np.isfinite(value)
  assert all(np.all(np.isfinite(leaf)) for leaf in gradients)
  half = jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)
  assert jax.eval_shape(lambda z: mean_log_probabilities([z, z]), half).dtype == jnp.float32


@pytest.mark.parametrize(
  ("logits", "weights", "message"),
  [
    ([], None, "there are no logits"),
    ([np.ones((2, 3)), np.ones((2, 4))], None, r"differ in shape: \[\(2, 3\), \(2, 4\)\]"),
    ([np.ones((2, 3))] * 2, [1.0], "they must be 2 finite numbers"),
    ([np.ones((2, 3))] * 2, [1.0, -1.0], "none negative"),
    ([np.ones((2, 3))] * 2, [0.0, 0.0], "not all 0"),
    ([np.ones((2, 3))] * 2, [1.0, float("nan")], "finite"),
  ],
)
def test_invalid_logits_or_weights_of_a_mean_raise_config_errors(logits, weights, message):
  with pytest.raises(ConfigError, match=message):
    mean_log_probabilities(logits, weights)


def test_ensemble_predicts_the_mean_of_its_members_probabilities(members, images, tmp_path):
  networks, logits = members
  network = reloaded(ensemble_of(networks), tmp_path)
  # "a" and "b" are one module instance with two sets of weights.
  assert set(network.variables["params"]) == {"members_a", "members_b", "members_wide"}
  expected = np.mean([softmax(z) for z in logits.values()], axis=0)
  np.testing.assert_allclose(softmax(run(network, images)), expected, rtol=1e-4)


def test_ensemble_weights_are_by_member_name(members, images, tmp_path):
  networks, logits = members
  weights = {"a": 1.0, "b": 0.0, "wide": 3.0}
  network = reloaded(ensemble_of(networks, weights=weights, combine="logits"), tmp_path)
  expected = 0.25 * logits["a"] + 0.75 * logits["wide"]
  np.testing.assert_allclose(run(network, images), expected, rtol=1e-4, atol=1e-5)


def test_invalid_ensembles_raise_config_errors(members):
  networks, _ = members
  for message, options in {
    "unknown way to combine an ensemble 'logit': did you": {"combine": "logit"},
    r"weights are for \['a', 'c'\]: the members are": {"weights": {"a": 1.0, "c": 1.0}},
    "finite numbers, none negative": {"weights": {"a": 1.0, "b": -1.0, "wide": 1.0}},
  }.items():
    with pytest.raises(ConfigError, match=message):
      ensemble_of(networks, **options)
  with pytest.raises(ConfigError, match="at least one member"):
    ensemble_of({})
  with pytest.raises(ConfigError, match="at least one member"):
    Ensemble({}).init(jax.random.key(0), jnp.ones((1, *IMAGE)))


@pytest.mark.parametrize(
  ("exit", "own"),
  [
    (0, {"network": {"conv1", "bn1"}, "heads_stage1": {"classifier"}}),
    (
      1,
      {
        "network": {"conv1", "bn1", "conv2", "bn2"},
        "heads_stage1": {"classifier"},
        "heads_stage2": {"classifier"},
      },
    ),
  ],
)
def test_cut_network_equals_its_exit_and_has_no_deeper_variables(exit, own, exits, images):
  variables, outputs = exits
  network = cut_at_exit(EXITS, variables, exit, IMAGE)
  found = {part: set(tree) for part, tree in network.variables["params"]["network"].items()}
  assert found == own
  assert_same(optimized_jit(network.module.apply)(network.variables, images), outputs[exit])


def test_deepest_exit_can_be_cut(exits, images, tmp_path):
  variables, outputs = exits
  network = reloaded(cut_at_exit(EXITS, variables, 2, IMAGE), tmp_path)
  found = optimized_jit(network.module.apply)(network.variables, images)
  np.testing.assert_array_equal(found.logits, outputs[2].logits)


def test_msdnet_can_be_cut():
  module = MSDNet(3, blocks=2, base=1, step=1, channels=2, growth_rate=1, exit_width=2)
  images = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), images)
  network = cut_at_exit(module, jax.tree.map(lambda x: np.zeros(x.shape), shapes), 0, (8, 8, 1))
  kept = set(network.variables["params"]["network"])
  assert "exit_0" in kept
  assert "exit_1" in shapes["params"]
  assert "exit_1" not in kept


def test_missing_exits_raise_config_errors(exits):
  for exit in (-1, 3):
    with pytest.raises(ConfigError, match=f"exit {exit}: there are exits 0 to 2"):
      cut_at_exit(EXITS, exits[0], exit, IMAGE)
  with pytest.raises(ConfigError, match="a TinyNet has no exits to be cut at"):
    AtExit(TinyNet(), 0).init(jax.random.key(0), jnp.ones((1, *IMAGE)))
  with pytest.raises(ConfigError, match=r"network_variables: \S+ is missing"):
    cut_at_exit(EXITS, {}, 1, IMAGE)


def test_exit_ensemble_predicts_the_mean_of_the_exits_probabilities(exits, images, tmp_path):
  variables, outputs = exits
  network = reloaded(exit_ensemble(EXITS, variables), tmp_path)
  expected = np.mean([softmax(output.logits) for output in outputs], axis=0)
  np.testing.assert_allclose(softmax(run(network, images)), expected, rtol=1e-4)


def test_gate_weighs_the_branches_for_each_image(images, tmp_path):
  variables = drawn(BRANCHED, images)
  gate = drawn(GATE, jnp.ones((4, 6, 6, 4)), train=False, seed=1)
  network = reloaded(gated_branches(BRANCHED, GATE, variables, gate), tmp_path)
  assert network.module.gate_stage == "stage1"

  @jit
  def parts(merged, variables, gate):
    outputs = BRANCHED.apply(variables, images)
    shares = GATE.apply(gate, outputs[0].features["stage1"], False)
    return network.module.apply(merged, images).logits, [o.logits for o in outputs], shares

  found, (a, b), shares = parts(network.variables, variables, gate)
  assert not np.allclose(shares[0], shares[1], atol=1e-3)
  expected = shares[:, :1] * a + shares[:, 1:] * b
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_mismatched_gates_raise_config_errors(images):
  for stage in ("stage2", "stage7"):
    with pytest.raises(ConfigError, match=f"unknown gate_stage '{stage}'.* known: stage1$"):
      gated_branches(BRANCHED, GATE, {}, {}, gate_stage=stage)
  network = GatedBranches(BRANCHED, Gate(3), "stage1")
  with pytest.raises(ConfigError, match=r"gate \(4, 3\) does not belong to 2 branches"):
    jax.eval_shape(network.init, jax.random.key(0), images)
  with pytest.raises(ConfigError, match="unknown gate_stage 'stage9'"):
    network = GatedBranches(BRANCHED, GATE, "stage9")
    jax.eval_shape(network.init, jax.random.key(0), images)
