"""Attention transfer: maps, distances and published variants."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxkd.errors import ConfigError
from jaxkd.losses import attention_map, attention_map_l2, attention_map_mse, attention_transfer
from jaxkd.types import Output

# Multiples of 1/4: activations are 0, or large enough that squares do not underflow in float32.
MAPS = hnp.arrays(np.int8, (2, 2, 3, 4), elements=st.integers(-40, 40)).map(
  lambda x: x.astype(np.float32) / 4
)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
map_of = jit(attention_map, static_argnames=("power", "reduce", "absolute", "eps", "eps_added"))
mse_and_gradient = jax.jit(jax.value_and_grad(attention_map_mse))


@given(MAPS, MAPS, st.floats(0.125, 8), st.floats(0.125, 8))
def test_attention_ignores_the_scale_of_the_features(student, teacher, a, b):
  np.testing.assert_allclose(
    mse_and_gradient(np.float32(a) * student, np.float32(b) * teacher)[0],
    mse_and_gradient(student, teacher)[0],
    rtol=1e-4,
    atol=1e-7,
  )


@given(MAPS, MAPS, st.permutations(range(4)))
def test_attention_ignores_the_order_of_the_channels(student, teacher, order):
  np.testing.assert_allclose(
    mse_and_gradient(student[..., order], teacher)[0],
    mse_and_gradient(student, teacher)[0],
    rtol=1e-5,
    atol=1e-7,
  )


@given(MAPS)
def test_attention_of_equal_maps_is_zero_with_a_zero_gradient(x):
  value, gradient = mse_and_gradient(x, x)
  # Compilers may round the two sides differently.
  assert value < 1e-12 and np.abs(gradient).max() < 1e-6


def test_distance_of_equal_maps_is_zero_with_a_finite_gradient():
  x = jnp.arange(12.0).reshape(1, 2, 2, 3)
  value, gradient = jax.jit(jax.value_and_grad(attention_map_l2))(x, x)
  assert value < 1e-6 and np.isfinite(gradient).all()


def test_attention_depends_on_the_position_in_the_image():
  x = np.zeros((1, 2, 2, 3), np.float32)
  x[:, 0, 0], moved = 1.0, np.roll(x, 1, axis=1)
  moved[:, 1, 0] = 1.0
  assert attention_map_mse(x, moved) == 0.5


def defined_map(x, power, reduce):
  """The attention map of powers of |x| by definition, in float64."""
  energy = {"mean": np.mean, "sum": np.sum, "max": np.max}[reduce](np.abs(x) ** power, axis=-1)
  return energy / np.sqrt((energy**2).sum(axis=(1, 2), keepdims=True))


each_power = pytest.mark.parametrize("power", [0.5, 1, 2, 3, 4, 8])
each_reduction = pytest.mark.parametrize("reduce", ["mean", "sum", "max"])


@each_power
@each_reduction
def test_map_equals_the_definition_for_every_power_and_reduction(power, reduce):
  x = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
  found = map_of(x.astype("float32"), power=power, reduce=reduce, absolute=True)
  np.testing.assert_allclose(found, defined_map(x, power, reduce), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", ["code", "paper"])
@pytest.mark.parametrize(("power", "reduce"), [(1, "max"), (2, "sum"), (4, "mean"), (1.5, "sum")])
def test_loss_equals_the_definition_for_every_norm_and_stage_pair(norm, power, reduce):
  rng = np.random.default_rng(0)
  student = {"a": rng.normal(size=(2, 4, 4, 3)), "b": rng.normal(size=(2, 2, 2, 5))}
  teacher = {"c": rng.normal(size=(2, 2, 2, 7)), "d": rng.normal(size=(2, 4, 4, 2))}

  def pooled(x):
    return x.reshape(2, 2, 2, 2, 2, -1).mean(axis=(2, 4))

  expected = 0.0
  for weight, s, t in (
    (0.5, pooled(student["a"]), teacher["c"]),
    (2.0, student["b"], teacher["c"]),
    (1.0, student["a"], teacher["d"]),
  ):
    gap = (defined_map(s, power, reduce) - defined_map(t, power, reduce)).reshape(2, -1)
    distance = (gap**2).mean() if norm == "code" else np.linalg.norm(gap, axis=1).mean()
    expected += weight * distance
  narrow = [
    Output(features={k: x.astype("float32") for k, x in side.items()})
    for side in (student, teacher)
  ]
  options = {"power": power, "reduce": reduce, "norm": norm, "absolute": True}
  pairs = [("a", "c"), ("b", "c"), ("a", "d")]
  loss = jit(
    lambda s, t: attention_transfer(s, t, stages=pairs, stage_weights=[0.5, 2.0, 1.0], **options)
  )
  np.testing.assert_allclose(loss(*narrow).feature, expected, rtol=1e-4)


@each_power
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_map_ignores_the_scale_of_the_features_at_every_power(power, absolute, dtype):
  x = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
  options = {"power": power, "absolute": absolute}
  small = jnp.asarray(x, dtype)
  # Powers of two scale without rounding.
  for scale in (1 / 16, 2.0**14):
    large = map_of(small * scale, **options)
    np.testing.assert_allclose(large, map_of(small, **options), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("eps_added", [False, True])
def test_eps_has_the_same_effect_at_high_powers(eps_added):
  # Values above 1 are divided by their scale, and eps accordingly.
  x = jnp.array([1.0, 2.0]).reshape(1, 1, 2, 1)
  energy, eps = np.array([1.0, 8.0]), 32.0
  norm = np.linalg.norm(energy)
  expected = energy / (norm + eps if eps_added else max(norm, eps))
  found = map_of(x, power=3, eps=eps, eps_added=eps_added).ravel()
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_gradient_is_correct_for_high_powers_of_large_values():
  x = np.random.default_rng(0).normal(size=(2, 2, 2, 3)).astype("float32")
  gradient = jit(jax.grad(lambda s, t: attention_map_mse(s, t, power=8, absolute=True)))
  small, large = gradient(x, x[::-1]), gradient(2.0**14 * x, x[::-1])
  assert np.abs(small).max() > 1e-3
  np.testing.assert_allclose(2.0**14 * large, small, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("power", [1, 2, 3, 0.5])
@pytest.mark.parametrize("loss", [attention_map_mse, attention_map_l2])
def test_all_zero_maps_give_finite_gradients(loss, power):
  zero, some = jnp.zeros((1, 2, 2, 3)), jnp.arange(12.0).reshape(1, 2, 2, 3)
  gradient = jax.jit(jax.grad(lambda s, t: loss(s, t, power=power)))
  assert np.isfinite(gradient(zero, some)).all()
  assert (gradient(zero, zero) == 0).all()
  assert np.isfinite(gradient(some, zero)).all()
  if power > 1:
    assert (gradient(zero, some) == 0).all()


def test_odd_powers_keep_the_sign_unless_absolute():
  x = -jnp.arange(1.0, 5.0).reshape(1, 2, 2, 1)
  np.testing.assert_allclose(attention_map(x, power=3), -attention_map(-x, power=3))
  np.testing.assert_allclose(attention_map(x, power=3, absolute=True), attention_map(-x, power=3))


def test_non_integer_powers_use_the_absolute_value():
  x = jnp.array([-4.0, 9.0]).reshape(1, 1, 2, 1)
  expected = np.array([8.0, 27.0]) / np.hypot(8, 27)
  np.testing.assert_allclose(attention_map(x, power=1.5).ravel(), expected, rtol=1e-6)


def test_mean_and_sum_over_channels_give_the_same_map_and_max_the_largest():
  x = jnp.array([[1.0, 2.0], [3.0, 0.0]]).reshape(1, 1, 2, 2)
  np.testing.assert_allclose(attention_map(x, reduce="sum"), attention_map(x), rtol=1e-6)
  expected = np.array([4.0, 9.0]) / np.hypot(4, 9)
  np.testing.assert_allclose(attention_map(x, reduce="max").ravel(), expected, rtol=1e-6)


def test_added_eps_shrinks_the_map():
  x = jnp.array([3.0, 4.0]).reshape(1, 1, 2, 1)
  shrunk = attention_map(x, power=1, eps=5.0, eps_added=True).ravel()
  np.testing.assert_allclose(shrunk, [0.3, 0.4], rtol=1e-6)
  np.testing.assert_allclose(attention_map(x, power=1, eps=5.0).ravel(), [0.6, 0.8], rtol=1e-6)


def test_paper_and_code_compare_the_same_maps():
  s, t = np.random.default_rng(0).normal(size=(2, 3, 2, 2, 4)).astype("float32")
  gap = np.asarray(attention_map(s) - attention_map(t)).reshape(3, 4)
  np.testing.assert_allclose(attention_map_mse(s, t), (gap**2).mean(), rtol=1e-5)
  np.testing.assert_allclose(attention_map_l2(s, t), np.linalg.norm(gap, axis=1).mean(), rtol=1e-5)


def test_loss_passes_its_options_to_the_maps():
  s, t = np.random.default_rng(0).normal(size=(2, 3, 2, 2, 4)).astype("float32")
  options = {"power": 3, "reduce": "max", "absolute": True, "eps": 0.5, "eps_added": True}
  outputs = [Output(features={"x": x}) for x in (s, t)]
  for norm, kernel in (("code", attention_map_mse), ("paper", attention_map_l2)):
    terms = attention_transfer(*outputs, stages=["x"], norm=norm, **options)
    assert terms.feature == kernel(s, t, **options)


def test_maps_of_different_sizes_and_channels_are_compared():
  s, t = jnp.ones((2, 4, 4, 3)), jnp.ones((2, 2, 2, 7))
  assert attention_map_mse(s, t) == 0


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"power": 0}, "power is 0"),
    ({"norm": "papr"}, "unknown norm 'papr': did you mean 'paper'"),
    ({"reduce": "avg"}, "unknown reduce 'avg'"),
    ({"stages": ["y"]}, "unknown student stage 'y'"),
  ],
)
def test_wrong_options_raise_an_error_that_names_them(options, message):
  x = Output(features={"x": jnp.ones((1, 2, 2, 1))})
  with pytest.raises(ConfigError, match=message):
    attention_transfer(x, x, **({"stages": ["x"]} | options))


@pytest.mark.parametrize(
  ("student", "teacher"), [((2, 3), (2, 2, 2, 3)), ((2, 2, 2, 3), (3, 2, 2, 3))]
)
def test_error_for_incompatible_shapes_names_the_stage(student, teacher):
  s, t = (Output(features={"x": jnp.ones(shape)}) for shape in (student, teacher))
  with pytest.raises(ConfigError, match=r"stage 'x': attention_map: .*student \(2"):
    attention_transfer(s, t, stages=["x"])
