"""Branches on a shared trunk."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.export.bundles import load_bundle, save_bundle
from jaxkd.models import Branched, branch_network
from tests.methods.one_step import assert_all_moved, assert_all_zero, assert_same, jit
from tests.models.drawn import drawn, optimized_jit
from tests.tiny import TinyNet

IMAGE = (6, 6, 1)
NETWORK = TinyNet()
BRANCHED = Branched(NETWORK, 3, "stage1")


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).normal(size=(4, *IMAGE)).astype(np.float32)


@pytest.fixture(scope="module")
def variables(images):
  return drawn(BRANCHED, images)


@pytest.fixture(scope="module")
def outputs(variables, images):
  return optimized_jit(BRANCHED.apply)(variables, images)


def shapes(variables):
  return jax.tree.map(np.shape, variables)


def test_trunk_and_branches_have_variables_of_their_own_layers_only(variables):
  params, statistics = variables["params"], variables["batch_stats"]
  assert set(params) == set(statistics) == {"trunk", "branches_0", "branches_1", "branches_2"}
  assert set(params["trunk"]) == {"conv1", "bn1"}
  for k in range(3):
    assert set(params[f"branches_{k}"]) == {"conv2", "bn2", "classifier"}
    assert set(statistics[f"branches_{k}"]) == {"bn2"}


def test_one_branch_has_the_variables_of_the_plain_network(images):
  module = Branched(NETWORK, 1, "stage2")
  variables = drawn(module, images)
  network, merged = branch_network(module, variables, 0)
  assert network == NETWORK
  assert shapes(merged) == shapes(drawn(NETWORK, images))
  assert len(jax.tree.leaves(variables)) == len(jax.tree.leaves(merged))


@pytest.mark.parametrize("index", [0, 2])
def test_branch_network_equals_the_branch_bit_by_bit(variables, outputs, images, index):
  network = branch_network(BRANCHED, variables, index)
  assert_same(outputs[index], optimized_jit(network.module.apply)(network.variables, images))
  kernel = variables["params"]["trunk"]["conv1"]["kernel"]
  assert network.variables["params"]["conv1"]["kernel"] is kernel


def test_branches_share_trunk_features_and_differ_after_the_trunk(outputs):
  for output in outputs:
    assert set(output.features) == set(BRANCHED.stages) == {"stage1", "stage2", "pooled"}
    assert set(output.preactivations) == {"stage1", "stage2"}
    np.testing.assert_array_equal(output.features["stage1"], outputs[0].features["stage1"])
  assert not np.allclose(outputs[0].features["stage2"], outputs[1].features["stage2"])
  assert not np.allclose(outputs[0].logits, outputs[1].logits)


def test_branches_have_different_initial_values(images):
  @jit
  def kernels(key):
    params = BRANCHED.init(key, images)["params"]
    return [params[f"branches_{k}"]["classifier"]["kernel"] for k in range(3)]

  a, b, c = kernels(jax.random.key(0))
  assert not np.any(a == b) and not np.any(a == c) and not np.any(b == c)


@pytest.fixture(scope="module")
def trained(variables, images):
  """Gradients and new batch statistics of a loss on branch 1 only."""

  def loss(params):
    changed = {**variables, "params": params}
    outputs, moved = BRANCHED.apply(changed, images, train=True, mutable=["batch_stats"])
    return (outputs[1].logits ** 2).sum(), moved["batch_stats"]

  return jit(jax.grad(loss, has_aux=True))(variables["params"])


def test_training_updates_every_batch_statistic_once(variables, images, trained):
  _, moved = trained
  assert_all_moved(variables["batch_stats"], moved)
  plain = branch_network(BRANCHED, variables, 1).variables
  train = {"train": True, "mutable": ["batch_stats"]}
  _, expected = jit(lambda v, x: NETWORK.apply(v, x, **train))(plain, images)
  for part, norm in (("trunk", "bn1"), ("branches_1", "bn2")):
    found = moved[part][norm]
    np.testing.assert_allclose(found["mean"], expected["batch_stats"][norm]["mean"], rtol=1e-4)


def test_loss_of_a_branch_has_gradients_for_trunk_and_that_branch_only(trained):
  found, _ = trained
  assert np.any(found["trunk"]["conv1"]["kernel"] != 0)
  assert np.any(found["branches_1"]["conv2"]["kernel"] != 0)
  assert_all_zero([found["branches_0"], found["branches_2"]])


class Wrapped(nn.Module):
  """A network that holds another module, as ReusedClassifier does."""

  network: nn.Module
  stages = TinyNet.stages

  def __call__(self, images, train=False):
    return self.network(images, train)

  def encode(self, images, train=False, to_stage="pooled"):
    return self.network.encode(images, train, to_stage)

  def resume(self, features, from_stage, train=False, to_stage=None):
    return self.network.resume(features, from_stage, train, to_stage)


def test_branches_of_a_network_with_submodule_fields_share_no_variables(images):
  variables = drawn(Branched(Wrapped(NETWORK), 2, "stage1"), images)
  assert set(variables["params"]) == {"trunk", "branches_0", "branches_1"}
  network = branch_network(Branched(Wrapped(NETWORK), 2, "stage1"), variables, 1)
  assert shapes(network.variables) == shapes(drawn(Wrapped(NETWORK), images))


def test_branch_network_survives_a_bundle(variables, images, tmp_path):
  tiny = {"TinyNet": TinyNet}
  network = branch_network(BRANCHED, variables, 2)
  save_bundle(tmp_path / "b", network, {"image_shape": list(IMAGE)}, modules=tiny)
  loaded, _ = load_bundle(tmp_path / "b", modules=tiny)
  assert loaded.module == NETWORK
  assert_same(loaded.variables, network.variables)


class Tied(Wrapped):
  """A network whose later layers reuse the weights of the first layer."""

  def resume(self, features, from_stage, train=False, to_stage=None):
    output = self.network.resume(features, from_stage, train, to_stage)
    return jax.tree.map(lambda z: z + self.network.conv1(features[..., :1]).mean(), output)


@pytest.mark.parametrize(
  ("module", "message"),
  [
    (Branched(nn.Dense(3), 2, "stage1"), "a Dense has no stages, no encode, no resume"),
    (Branched(NETWORK, 2, "stage7"), "unknown from_stage 'stage7': did you mean 'stage"),
    (Branched(NETWORK, 0, "stage1"), "branches is 0: it must be at least 1"),
  ],
)
def test_invalid_fields_of_branched_raise_config_errors(module, message, variables, images):
  with pytest.raises(ConfigError, match=message):
    jax.eval_shape(module.init, jax.random.key(0), images)
  with pytest.raises(ConfigError, match=message):
    branch_network(module, variables, 0)


def test_branch_network_rejects_bad_index_missing_variables_and_tied_weights(variables, images):
  for index in (-1, 3):
    with pytest.raises(ConfigError, match=f"branch {index}: there are branches 0 to 2"):
      branch_network(BRANCHED, variables, index)
  with pytest.raises(ConfigError, match="params/branches_3 is missing"):
    branch_network(Branched(NETWORK, 4, "stage1"), variables, 3)
  tied = Branched(Tied(NETWORK), 2, "stage1")
  with pytest.raises(ConfigError, match=r"params/network/conv1/\w+ is both the trunk's and"):
    branch_network(tied, drawn(tied, images), 0)


def test_trunk_may_extend_to_the_pooled_stage(images):
  variables = drawn(Branched(NETWORK, 2, "pooled"), images)
  assert set(variables["params"]["branches_1"]) == {"classifier"}
