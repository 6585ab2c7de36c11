"""tap on modules of other projects: jax-resnet and Flax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jax_resnet
import numpy as np
import pytest
from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.models import tap
from tests.models.drawn import drawn, optimized_jit

# Its blocks have no train flag; they train if batch_stats is mutable.
RESNET = jax_resnet.ResNet(
  jax_resnet.ResNetBlock, stage_sizes=[1, 1], n_classes=3, hidden_sizes=(4, 8)
)
TAPPED = tap(
  RESNET,
  {"stem": "layers_0", "stage1": "layers_2", "stage2": "layers_3", "pooled": "layers_5:input"},
  {"stem": "layers_0/ConvBlock_0/BatchNorm_0"},
)


@pytest.fixture(scope="module")
def images():
  return jax.random.normal(jax.random.key(0), (4, 16, 16, 3))


@pytest.fixture(scope="module")
def variables(images):
  return drawn(RESNET, images)


def test_tap_does_not_change_variable_names(variables, images):
  tapped = jax.eval_shape(TAPPED.init, jax.random.key(1), images)
  assert jax.tree.map(jnp.shape, tapped) == jax.tree.map(jnp.shape, variables)


def test_logits_are_the_modules_and_features_are_its_submodules_outputs(variables, images):
  output = optimized_jit(TAPPED.apply)(variables, images)
  expected, captured = jax.jit(
    lambda v, x: RESNET.apply(v, x, capture_intermediates=True, mutable=["intermediates"])
  )(variables, images)
  captured = captured["intermediates"]
  np.testing.assert_allclose(output.logits, expected, rtol=1e-5, atol=1e-6)
  assert TAPPED.stages == ("stem", "stage1", "stage2", "pooled")
  assert set(output.features) == set(TAPPED.stages)
  for stage, layer in (("stem", "layers_0"), ("stage1", "layers_2"), ("stage2", "layers_3")):
    (feature,) = captured[layer]["__call__"]
    np.testing.assert_allclose(output.features[stage], feature, rtol=1e-5, atol=1e-6)
  stem = np.maximum(output.preactivations["stem"], 0)
  np.testing.assert_array_equal(stem, output.features["stem"])
  pooled = jnp.mean(output.features["stage2"], (1, 2))
  np.testing.assert_allclose(output.features["pooled"], pooled, rtol=1e-5)


def test_encode_returns_the_features_up_to_a_stage_without_logits(variables, images):
  def encode(stage):
    return jax.eval_shape(
      lambda v, x: TAPPED.apply(v, x, to_stage=stage, method="encode"), variables, images
    )

  output = jax.eval_shape(TAPPED.apply, variables, images)
  encoded = encode("stage1")
  assert encoded.logits is None
  assert encoded.features == {name: output.features[name] for name in ("stem", "stage1")}
  assert set(encoded.preactivations) == {"stem"}
  with pytest.raises(ConfigError, match="unknown stage 'stage9'"):
    encode("stage9")


def test_training_a_tapped_module_updates_its_batch_statistics(variables, images):
  def loss(params):
    output, updated = TAPPED.apply(
      {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
    )
    return jnp.mean(output.features["stage1"] ** 2) + jnp.mean(output.logits**2), updated

  def plain(params):
    changed = {**variables, "params": params}
    return RESNET.apply(changed, images, mutable=["batch_stats"])[1]

  @jax.jit
  def both(params):
    return jax.grad(loss, has_aux=True)(params), plain(params)

  (gradients, updated), expected = both(variables["params"])
  assert set(updated) == {"batch_stats"}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), updated, expected
  )
  assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradients["layers_0"]))


def test_unknown_path_error_lists_the_known_paths(variables, images):
  tapped = tap(RESNET, {"stage1": "layers_2/ConvBlock_7"})
  with pytest.raises(
    ConfigError, match=r"unknown path 'layers_2/ConvBlock_7': did you mean 'layers_2/ConvBlock_"
  ):
    jax.eval_shape(tapped.apply, variables, images)


def test_resume_of_a_tapped_module_raises_not_implemented(variables):
  with pytest.raises(NotImplementedError, match="a tapped Sequential cannot resume"):
    TAPPED.apply(variables, jnp.ones((1, 8)), "stage2", method="resume")


class Moded(nn.Module):
  """A module that returns the mode arguments that it was called with."""

  @nn.compact
  def __call__(self, x, deterministic=None, is_eval=None):
    x = nn.Dense(2)(x)
    return (x, {"deterministic": deterministic, "is_eval": is_eval})


@pytest.mark.parametrize("train", [True, False])
def test_mode_argument_follows_the_signature_or_the_caller(train):
  def seen(**options):
    received = []

    def logits(result):
      received.append(result[1])
      return result[0]

    tapped = tap(Moded(), {"all": "Dense_0"}, logits=logits, **options)
    jax.eval_shape(lambda: tapped.init(jax.random.key(0), jnp.ones((1, 3)), train=train))
    return received[-1]

  assert seen() == {"deterministic": not train, "is_eval": None}
  told = seen(mode=lambda train: {"is_eval": not train})
  assert told == {"deterministic": None, "is_eval": not train}


class Normalized(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    return nn.BatchNorm(use_running_average=not train)(x)


def test_train_argument_is_passed_on_and_statistics_change_in_training_only():
  x = jax.random.normal(jax.random.key(0), (4, 3))
  variables = drawn(Normalized(), x, train=False)
  tapped = tap(Normalized(), {})
  for train in (False, True):
    output, updated = tapped.apply(variables, x, train=train, mutable=["batch_stats"])
    expected, moved = Normalized().apply(variables, x, train=train, mutable=["batch_stats"])
    np.testing.assert_array_equal(output.logits, expected)
    jax.tree.map(np.testing.assert_array_equal, updated, moved)


def test_module_that_returns_more_than_logits_needs_a_logits_function():
  with pytest.raises(TypeError, match=r"Moded returns .* select the logits with logits="):
    tap(Moded(), {}).init(jax.random.key(0), jnp.ones((1, 3)))


class Rematerialized(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    x = nn.remat(nn.Dense)(4, name="inner")(x)
    x = nn.Dropout(0.5)(x, deterministic=not train)
    return nn.MultiHeadDotProductAttention(2, name="attention")(x[:, None])[:, 0]


def test_taps_inside_rematerialized_parts_have_values_and_gradients():
  module = Rematerialized()
  tapped = tap(module, {"inner": "inner", "query": "attention/query"})
  x = jax.random.normal(jax.random.key(0), (2, 3))
  variables = module.init(jax.random.key(1), x)

  def loss(variables):
    output = tapped.apply(variables, x)
    return jnp.sum(output.features["inner"] ** 2), output

  gradient, output = jax.jit(jax.grad(loss, has_aux=True))(variables)
  kernel, bias = (variables["params"]["inner"][name] for name in ("kernel", "bias"))
  np.testing.assert_allclose(output.features["inner"], x @ kernel + bias[None], rtol=1e-5)
  expected = 2 * x.T @ output.features["inner"]
  np.testing.assert_allclose(gradient["params"]["inner"]["kernel"], expected, rtol=1e-5)
  assert output.features["query"].shape == (2, 1, 2, 2)


def test_tap_does_not_change_initial_values():
  x = jnp.ones((2, 3))
  expected = Rematerialized().init(jax.random.key(1), x)
  found = tap(Rematerialized(), {"inner": "inner"}).init(jax.random.key(1), x)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_tap_does_not_change_dropout():
  module = Rematerialized()
  x = jax.random.normal(jax.random.key(0), (2, 3))
  variables = module.init(jax.random.key(1), x)
  rngs = {"dropout": jax.random.key(2)}
  expected = module.apply(variables, x, train=True, rngs=rngs)
  found = tap(module, {}).apply(variables, x, train=True, rngs=rngs)
  np.testing.assert_allclose(found.logits, expected, rtol=1e-6)


class Scanned(nn.Module):
  @nn.compact
  def __call__(self, x):
    body = nn.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
    return body(name="steps")(x, None)[0]


class Step(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return nn.Dense(3, name="dense")(x), None


def test_path_inside_a_scan_is_refused():
  with pytest.raises(ValueError, match="'steps/dense' runs inside a lifted transform"):
    tap(Scanned(), {"dense": "steps/dense"}).init(jax.random.key(0), jnp.ones((2, 3)))
