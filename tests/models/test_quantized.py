"""Quantisation-aware networks: rounding, ranges, masks, stages, runs with `student.quantize`."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jaxkd import methods, models
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, run
from jaxkd.experiment import config as experiment_config
from jaxkd.export import bundles
from jaxkd.models.compose.quantized import (
  RANGES,
  Quantized,
  calibrated,
  input_ranges,
  quantized,
  unrounded,
  with_ranges,
)
from jaxkd.models.compose.rounding import rounded, rounded_kernels
from jaxkd.networks import infer, learn
from jaxkd.train.start import example_batch
from tests.methods.one_step import jit
from tests.tiny import TinyNet, batch
from tests.train.every_scheme import update

FLOATS = st.floats(-8, 8, width=32, allow_subnormal=False)


NETWORK = quantized(models.create("resnet8_w4", num_classes=3), "int8")
IMAGES = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
trained = jit(lambda v, x, where: learn(NETWORK, v, x, jax.random.key(2), where=where)[1])
evaluated = jit(lambda v, x: infer(NETWORK, v, x))


@pytest.fixture(scope="module")
def drawn():
  return jit(NETWORK.init)(jax.random.key(1), IMAGES)


@pytest.fixture(scope="module")
def variables(drawn):
  """After one update in training mode."""
  return {**drawn, **trained(drawn, IMAGES, jnp.ones(4))}


@given(arrays.arrays("float32", 6, elements=FLOATS), FLOATS, FLOATS, st.integers(2, 8))
def test_rounded_values_are_the_nearest_levels_and_gradients_pass_inside(x, low, high, bits):
  low, high = np.float32(min(low, 0)), np.float32(max(high, 0))
  value, slope = jax.value_and_grad(lambda x: rounded(x, low, high, bits).sum())(x)
  found = np.asarray(rounded(x, low, high, bits), "float64")
  if high - low < 1e-30:
    assert np.abs(found).max() <= high - low
    return
  scale = (float(high) - float(low)) / (2**bits - 1)
  steps = found / scale
  np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)  # 0 is a level
  inside = (x >= low + scale) & (x <= high - scale)
  assert np.all(np.abs(found - x)[inside] <= scale * 0.5001 + 1e-6)
  assert np.all(np.asarray(slope)[inside] == 1)
  outside = (x < low - scale) | (x > high + scale)
  assert not np.asarray(slope)[outside].any()
  np.testing.assert_allclose(value, found.sum(), rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    rounded(jnp.asarray(found, "float32"), low, high, bits), found, rtol=1e-5
  )


@given(arrays.arrays("float32", (3, 2), elements=FLOATS), st.integers(2, 8))
def test_kernels_are_integers_of_a_scale_for_each_channel(kernel, bits):
  tree = {"kernel": kernel, "bias": kernel[0], "other": {"kernel": kernel[:, 0]}}
  found = rounded_kernels(tree, bits)
  np.testing.assert_array_equal(found["bias"], tree["bias"])
  np.testing.assert_array_equal(found["other"]["kernel"], kernel[:, 0])
  scale = np.abs(kernel).max(0) / (2 ** (bits - 1) - 1)
  # Smaller scales are no normal numbers: such kernels are zeros.
  scale = np.where(scale >= np.finfo("float32").tiny, scale, 1.0)
  steps = np.asarray(found["kernel"]) / scale
  np.testing.assert_allclose(steps, np.round(kernel / scale), atol=1e-3)
  slope = jax.grad(lambda k: rounded_kernels({"kernel": k}, bits)["kernel"].sum())(kernel)
  np.testing.assert_array_equal(slope, np.ones_like(kernel))


def test_ranges_are_moving_averages_that_evaluation_does_not_change(variables):
  found = {name: (low, high) for name, low, high in input_ranges(variables)}
  low, high = found["network/stem_conv"]
  np.testing.assert_allclose([low, high], [IMAGES.min(), IMAGES.max()], rtol=1e-5)
  assert found["network/classifier"][0] == 0 < found["network/classifier"][1]
  changes = trained(variables, 2 * IMAGES, jnp.ones(4))
  moved = {name: high for name, _, high in input_ranges({**variables, **changes})}
  # Weights 0.99 of the first batch and 1 of the second.
  np.testing.assert_allclose(
    moved["network/stem_conv"], (0.99 + 2) / 1.99 * IMAGES.max(), rtol=1e-5
  )
  # An example has the logits that it has in another batch.
  others = IMAGES.at[jnp.array([0, 2, 3])].mul(5.0)
  first, second = (evaluated(variables, x).logits[1] for x in (IMAGES, others))
  np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


def test_before_the_first_update_a_layer_takes_the_range_of_its_batch(drawn):
  assert not any(map(np.any, jax.tree.leaves(drawn[RANGES])))
  plain, own = unrounded(NETWORK, drawn)
  exact = jit(plain.apply)(own, IMAGES).logits
  assert 0 < np.abs(evaluated(drawn, IMAGES).logits - exact).max() < 0.1
  fine = dataclasses.replace(NETWORK, weight_bits=16, activation_bits=16)
  np.testing.assert_allclose(jit(fine.apply)(drawn, IMAGES).logits, exact, atol=1e-3)
  with pytest.raises(
    ConfigError, match="network/classifier has no range: the network was not trained"
  ):
    list(input_ranges(drawn))


def test_masked_examples_move_no_range(drawn, variables):
  # The first example is as the last, so that leaving it out changes no statistic.
  doubled = IMAGES.at[0].set(IMAGES[3]).at[2].set(IMAGES[1])
  found = trained(drawn, doubled.at[1].set(jnp.nan).at[0].set(jnp.inf), jnp.array([0, 0, 1, 1]))
  expected = trained(drawn, doubled, jnp.ones(4))
  for have, want in zip(
    jax.tree.leaves(found[RANGES]), jax.tree.leaves(expected[RANGES]), strict=True
  ):
    np.testing.assert_allclose(have, want, rtol=1e-3, atol=1e-5)
  unchanged = trained(variables, jnp.full_like(IMAGES, jnp.nan), jnp.zeros(4))
  before = jax.tree.leaves(variables[RANGES])
  for have, want in zip(jax.tree.leaves(unchanged[RANGES]), before, strict=True):
    np.testing.assert_array_equal(have, want)


@pytest.mark.long
def test_stages_continue_one_another(variables):
  whole = evaluated(variables, IMAGES)
  part = infer(NETWORK, variables, IMAGES, to_stage="stage1")
  assert tuple(part.features) == ("stem", "stage1")
  resumed = infer(NETWORK, variables, part.features["stage1"], from_stage="stage1")
  np.testing.assert_allclose(resumed.logits, whole.logits, rtol=1e-3, atol=1e-3)
  assert NETWORK.stages == NETWORK.network.stages and NETWORK.channels["stem"] == 4


def test_float_variables_get_ranges(drawn):
  _, own = unrounded(NETWORK, drawn)
  assert jax.tree.map(jnp.shape, with_ranges(NETWORK, own, IMAGES)) == jax.tree.map(
    jnp.shape, dict(drawn)
  )


def test_a_trained_network_is_rounded_afterwards_with_the_ranges_of_examples(drawn):
  plain = unrounded(NETWORK, drawn)
  found = calibrated(plain, "int8", [IMAGES, IMAGES])
  ranges = {name: (low, high) for name, low, high in input_ranges(found.variables)}
  np.testing.assert_allclose(ranges["network/stem_conv"], [IMAGES.min(), IMAGES.max()], rtol=1e-5)
  exact = infer(*plain, IMAGES).logits
  assert 0 < np.abs(evaluated(found.variables, IMAGES).logits - exact).max() < 0.1
  with pytest.raises(ConfigError, match="batches: expected at least one"):
    calibrated(plain, "int8", [])


@pytest.mark.long
@pytest.mark.parametrize(("parts", "devices"), [(1, 2), (1, 8), (2, 1)])
def test_devices_average_their_ranges_and_parts_follow_one_another(parts, devices):
  network = quantized(TinyNet(), "int8")
  scheme = methods.supervised(network)
  data = batch(8)
  participants = jit(scheme.init)(jax.random.key(0), data)
  found, _ = update(scheme, participants, data, parts=parts, devices=devices)
  step = jit(lambda v, x: learn(network, v, x, jax.random.key(2))[1][RANGES])
  variables, cuts = participants["student"], np.split(np.asarray(data.inputs), parts * devices)
  if parts == 1:
    each = [step(variables, cut) for cut in cuts]
    expected = jax.tree.map(lambda *x: np.mean(x, axis=0), *each)
  else:
    for cut in cuts:
      variables = {**variables, RANGES: step(variables, cut)}
    expected = variables[RANGES]

  for have, want in zip(
    jax.tree.leaves(found["student"][RANGES]), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_bfloat16_network_stays_in_bfloat16():
  network = quantized(models.create("resnet8_w4", num_classes=3, dtype=jnp.bfloat16), "int4")
  assert (network.weight_bits, network.activation_bits) == (4, 8)
  images = jnp.ones((2, 8, 8, 1))
  variables = jit(network.init)(jax.random.key(1), images)
  output, _ = jit(lambda v: learn(network, v, images, jax.random.key(2)))(variables)
  assert output.features["stage3"].dtype == jnp.bfloat16 and jnp.isfinite(output.logits).all()


class WithoutStages(nn.Module):
  """A model that cannot stop or continue."""

  @nn.compact
  def __call__(self, images, train=False):
    return nn.Dense(2)(images)


def test_what_cannot_be_quantised_is_refused():
  with pytest.raises(ConfigError, match="unknown precision 'int7'"):
    quantized(models.create("resnet8_w4", num_classes=3), "int7")
  with pytest.raises(ConfigError, match="MSDNet has exits of its own"):
    quantized(models.create("msdnet", num_classes=3), "int8")
  network = quantized(WithoutStages(), "int8")
  variables = network.init(jax.random.key(0), jnp.ones((2, 3)))
  with pytest.raises(ConfigError, match="WithoutStages has no resume"):
    network.apply(variables, jnp.ones((2, 3)), "a", method="resume")


def settings(method, **changes):
  made = experiment_config.base_config(method)
  made.data.name, made.data.per_class, made.data.teacher_per_class = "digits", 8, 16
  made.teacher.model, made.student.model = "resnet8_w8", "resnet8_w4"
  made.teacher.epochs = made.student.epochs = 1
  made.batch_size, made.baseline = 40, False
  for name, value in changes.items():
    setattr(made.student, name, value)
  experiment_config.check_config(made)
  return made


@pytest.mark.parametrize(
  "method",
  ["kd", *(pytest.param(x, marks=pytest.mark.long) for x in ("fitnets", "simkd", "multi_exit"))],
)
def test_every_phase_of_a_student_is_quantised(method):
  made = settings(method, quantize="int8")
  [*_, last] = build.phases(made, build.dataset(made))
  drawn = jax.eval_shape(last.scheme.init, jax.random.key(0), example_batch(last))
  [name] = [name for name, variables in drawn.items() if RANGES in variables]
  assert name.startswith("student")
  paths = jax.tree.leaves_with_path(drawn[name][RANGES])
  assert len(paths) >= 3 * 10


@pytest.mark.long
def test_a_run_saves_a_quantised_student_from_which_another_starts(tmp_path):
  summary = run.run(settings("kd", quantize="int8"), tmp_path / "first")
  path = tmp_path / "first/bundles/distilled/student"
  network, about = bundles.load_bundle(path)
  assert isinstance(network.module, Quantized)
  assert len(list(input_ranges(network.variables))) == 10
  assert about["test_accuracy"] == summary["stages"]["distilled"]["accuracy"]
  other = settings("kd", quantize="int4", bundle=str(path))
  again = run.run(other, tmp_path / "second")
  assert again["stages"]["distilled"]["accuracy"] > 0
