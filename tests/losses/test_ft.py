"""Factor transfer: definitions, reconstruction and published variants."""

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
from jaxkd.losses import (
  adaptive_average_pool,
  attention_map,
  factor_l1,
  factor_lp,
  factor_map_lp,
  factor_transfer,
  reconstruction_error,
)
from jaxkd.types import Output

# Each program runs a few times only, so compile time dominates.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

KERNELS = (factor_l1, factor_lp, factor_map_lp)
every_kernel = pytest.mark.parametrize("kernel", KERNELS)
SHAPE = (2, 2, 3, 4)
FACTORS = hnp.arrays(np.int8, SHAPE, elements=st.integers(-40, 40)).map(
  lambda x: x.astype(np.float32) / 4
)
compiled = {kernel: jit(jax.value_and_grad(kernel)) for kernel in KERNELS}


def factors(seed=0, shape=SHAPE):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


def outputs(*arrays):
  return [Output(features={"stage3": jnp.asarray(x)}) for x in arrays]


@every_kernel
@given(FACTORS, FACTORS, st.floats(0.125, 8), st.floats(0.125, 8))
def test_kernels_ignore_the_scale_of_the_factors(kernel, student, teacher, a, b):
  np.testing.assert_allclose(
    compiled[kernel](np.float32(a) * student, np.float32(b) * teacher)[0],
    compiled[kernel](student, teacher)[0],
    rtol=1e-4,
    atol=1e-6,
  )


@every_kernel
@given(FACTORS)
def test_value_and_gradient_are_zero_for_equal_factors(kernel, x):
  value, gradient = compiled[kernel](x, x)
  assert value == 0 and (gradient == 0).all()


@every_kernel
def test_value_and_gradient_are_zero_for_equal_factors_in_optimised_programs(kernel):
  # The optimising compiler fuses one side's normalisation into the subtraction.
  value, gradient = jax.jit(jax.value_and_grad(kernel))(factors(), factors())
  assert value == 0 and (gradient == 0).all()


def test_kernels_compare_flattened_factors_of_norm_one():
  s, t = factors(0), factors(1)
  unit_s, unit_t = (
    x.reshape(2, -1) / np.linalg.norm(x.reshape(2, -1), axis=1)[:, None] for x in (s, t)
  )
  gap = np.abs(unit_s - unit_t)
  np.testing.assert_allclose(compiled[factor_l1](s, t)[0], gap.mean(), rtol=1e-5)
  for order in (1, 2, 3):
    distance = (gap**order).sum(1) ** (1 / order)
    value = jit(functools.partial(factor_lp, order=order))(s, t)
    np.testing.assert_allclose(value, distance.mean(), rtol=1e-5)


def test_gradient_of_the_distance_is_tangent_to_the_unit_sphere():
  s, t = (x.reshape(2, -1) for x in (factors(0), factors(1)))
  norm = np.linalg.norm(s, axis=1, keepdims=True)
  a, b = s / norm, t / np.linalg.norm(t, axis=1, keepdims=True)
  cosine = (a * b).sum(1, keepdims=True)
  # |a - b| = sqrt(2 - 2 cos), and the derivative of a unit vector is orthogonal to it.
  slope = (cosine * a - b) / norm / np.sqrt(2 - 2 * cosine) / 2
  _, gradient = compiled[factor_lp](factors(0), factors(1))
  np.testing.assert_allclose(gradient.reshape(2, -1), slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("power", "order"), [(2, 1), (2, 2), (1, 1)])
def test_factor_map_lp_compares_attention_maps_of_factors(power, order):
  s, t = factors(0), factors(1, (2, 2, 3, 5))

  @jit
  def compute(s, t):
    gap = attention_map(s, power=power) - attention_map(t, power=power)
    return factor_map_lp(s, t, power=power, order=order), gap

  value, gap = compute(s, t)
  np.testing.assert_allclose(value, (np.abs(gap) ** order).mean(), rtol=1e-5)


def test_factor_map_lp_ignores_the_order_of_channels_and_factor_l1_does_not():
  s, t = factors(0), factors(1)
  (turned_map, turned), (same_map, same) = (
    [compiled[kernel](x, t)[0] for kernel in (factor_map_lp, factor_l1)] for x in (s[..., ::-1], s)
  )
  np.testing.assert_allclose(turned_map, same_map, rtol=1e-5)
  assert abs(turned - same) > 1e-3


@every_kernel
def test_zero_factors_give_finite_gradients(kernel):
  zero, some = np.zeros(SHAPE, "float32"), factors()
  for pair in ((zero, some), (some, zero), (zero, zero)):
    value, gradient = compiled[kernel](*pair)
    assert np.isfinite(value) and np.isfinite(gradient).all()
  assert (gradient == 0).all()


def test_eps_bounds_the_gradient_of_a_zero_factor():
  gradient = jit(jax.grad(lambda s, t: factor_l1(s, t, eps=1e-3)))(0 * factors(), factors())
  np.testing.assert_allclose(np.abs(gradient).max(), 1e3 / factors().size, rtol=1e-4)


def test_reconstruction_error_has_zero_gradient_at_equal_elements():
  x = jnp.arange(4.0).reshape(2, 2)
  gradient = jit(jax.grad(reconstruction_error))(x.at[0, 0].add(2.0), x)
  np.testing.assert_array_equal(gradient, [[0.25, 0.0], [0.0, 0.0]])


def test_reconstruction_error_is_the_mean_over_every_element():
  r, f = factors(0), factors(1)
  np.testing.assert_allclose(reconstruction_error(r, f), np.abs(r - f).mean(), rtol=1e-5)
  np.testing.assert_allclose(
    reconstruction_error(r, f, error="mse"), ((r - f) ** 2).mean(), rtol=1e-5
  )
  with pytest.raises(ConfigError, match="unknown error 'l2'"):
    reconstruction_error(r, f, error="l2")


def test_options_select_the_variant():
  s, t = factors(0), factors(1)
  pair = outputs(s, t)
  maps = {"power": 3, "order": 2, "eps": 5.0}

  @jit
  def compute():
    return (
      (factor_transfer(*pair).feature, factor_l1(s, t)),
      (factor_transfer(*pair, stage_weights=[3.0]).feature, 3 * factor_l1(s, t)),
      (factor_transfer(*pair, order=2, eps=5.0).feature, factor_lp(s, t, eps=5.0)),
      (
        factor_transfer(*pair, normalization="repdistiller", **maps).feature,
        factor_map_lp(s, t, **maps),
      ),
    )

  for loss, kernel in compute():
    np.testing.assert_allclose(loss, kernel, rtol=1e-6)
  assert len({round(float(loss), 6) for loss, _ in compute()}) == 4


@pytest.mark.parametrize(
  ("normalization", "kernel"), [("official", factor_l1), ("repdistiller", factor_map_lp)]
)
def test_larger_factor_is_pooled_to_the_smaller(normalization, kernel):
  small, large = factors(0), factors(1, (2, 4, 6, 4))
  pooled = adaptive_average_pool(large, 2, 3)
  for pair, expected in (
    ((small, large), kernel(small, pooled)),
    ((large, small), kernel(pooled, small)),
  ):
    value = factor_transfer(*outputs(*pair), normalization=normalization).feature
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_error_for_different_channels_names_stage_shapes_and_remedy():
  pair = outputs(factors(), factors(0, (2, 2, 3, 5)))
  message = r"stage 'stage3': factor_l1: student \(2, 2, 3, 4\) and teacher \(2, 2, 3, 5\)"
  with pytest.raises(ConfigError, match=message + ".*translator"):
    factor_transfer(*pair)
  assert factor_transfer(*pair, normalization="repdistiller").feature > 0


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"order": 0.5}, "order is 0.5"),
    ({"order": float("inf")}, "order is inf"),
    ({"normalization": "rep"}, "unknown normalization 'rep'"),
    ({"normalization": "repdistiller", "power": 0}, "power is 0"),
    ({"stages": ["stage2"]}, "unknown student stage 'stage2'"),
  ],
)
def test_wrong_options_raise_an_error_that_names_them(options, message):
  with pytest.raises(ConfigError, match=message):
    factor_transfer(*outputs(factors(), factors()), **options)
