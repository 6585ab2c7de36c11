"""Standardised logits: the definition, invariances, and rows without a deviation."""

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
from jaxkd.losses import knowledge_distillation, soft_target_kl
from jaxkd.losses._standardization import standardized
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

LOGITS = hnp.arrays(np.float32, (4, 5), elements=st.floats(-20, 20, width=32))
RNG = np.random.default_rng(0)
S, T = RNG.normal(size=(2, 4, 5)).astype("float32")


@functools.cache
def compiled(**options):
  return jit(jax.value_and_grad(functools.partial(soft_target_kl, standardize=True, **options)))


@jit
def values_and_gradient(z, weights):
  def weighted(z):
    found = standardized(z)
    return jnp.sum(jnp.where(found == -jnp.inf, 0.0, found) * weights)

  return standardized(z), jax.grad(weighted)(z)


def reference(z):
  z = np.asarray(z, np.float64)
  return (z - z.mean(-1, keepdims=True)) / (1e-7 + z.std(-1, ddof=1, keepdims=True))


def softmax(z):
  return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


@pytest.mark.parametrize("scale", [1e-18, 1e-7, 1.0, 1e8, 1e30])
def test_standardized_logits_equal_the_definition(scale):
  z = np.float32(scale) * S
  np.testing.assert_allclose(standardized(z), reference(z), rtol=1e-5, atol=1e-6 * min(scale, 1))
  dense = standardized(z.reshape(2, 2, 5))
  np.testing.assert_allclose(dense.reshape(4, 5), standardized(z), rtol=1e-6)


def test_divergence_equals_the_definition():
  p, q = (softmax(reference(z) / 2.0) for z in (T, S))
  expected = (p * np.log(p / q)).sum(-1).mean()
  np.testing.assert_allclose(compiled(temperature=2.0)(S, T)[0], 4 * expected, rtol=1e-5)
  plain = soft_target_kl(S, T, temperature=2.0, squared_temperature=False, standardize=True)
  np.testing.assert_allclose(plain, expected, rtol=1e-5)


@given(LOGITS, LOGITS)
def test_divergence_is_finite_and_not_negative(student, teacher):
  value, gradient = compiled()(student, teacher)
  assert 0 <= value < np.inf and np.isfinite(gradient).all()


def test_scale_and_shift_of_either_side_do_not_matter():
  value, gradient = compiled()(S, T)
  assert value > 0.1
  moved, turned = compiled()(3.0 * S - 7.0, 0.5 * T + 100.0)
  np.testing.assert_allclose(moved, value, rtol=1e-4)
  np.testing.assert_allclose(3.0 * turned, gradient, rtol=1e-3, atol=1e-5)
  # The gradient neither shifts nor scales the student's logits.
  np.testing.assert_allclose(np.sum(gradient, -1), 0.0, atol=1e-6)
  np.testing.assert_allclose(np.sum(gradient * S, -1), 0.0, atol=1e-5)


def test_equal_logits_up_to_scale_have_no_loss():
  value, gradient = compiled()(4.0 * T, T)
  np.testing.assert_allclose(value, 0.0, atol=1e-12)
  np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
  value, gradient = compiled()(T, T)
  assert value == 0 and not np.any(gradient)


@pytest.mark.parametrize("fill", [0.0, 0.1, -1e8, 1e30])
def test_rows_of_equal_logits_are_zero_and_take_no_gradient(fill):
  z = S.copy()
  z[1] = fill
  found, gradient = values_and_gradient(z, T)
  assert not np.any(found[1]) and not np.any(gradient[1])
  np.testing.assert_allclose(
    np.delete(found, 1, 0), reference(np.delete(z, 1, 0)), rtol=1e-5, atol=1e-6
  )
  # Logits that agree up to rounding, as behind a network.
  near = np.float32(fill) * (1 + np.array([0.0, 1.2e-7, -1.2e-7, 0.0, 2.4e-7], "float32"))
  z[1] = near
  found, gradient = values_and_gradient(z, T)
  assert not np.any(found[1]) and not np.any(gradient[1])


def test_one_class_is_zero():
  found, gradient = values_and_gradient(S[:, :1], T[:, :1])
  assert not np.any(found) and not np.any(gradient)


def test_impossible_classes_are_left_out():
  z = np.insert(S, 2, -np.inf, axis=1)
  weights = np.insert(T, 2, 0.0, axis=1)
  found, gradient = values_and_gradient(z, weights)
  expected, expected_gradient = values_and_gradient(S, T)
  assert (found[:, 2] == -np.inf).all() and not np.any(gradient[:, 2])
  np.testing.assert_allclose(np.delete(found, 2, 1), expected, rtol=1e-6)
  np.testing.assert_allclose(np.delete(gradient, 2, 1), expected_gradient, rtol=1e-5, atol=1e-6)
  # One possible class, and none.
  z[0, 1:], z[1] = -np.inf, -np.inf
  found, gradient = values_and_gradient(z, weights)
  assert found[0, 0] == 0 and (found[0, 1:] == -np.inf).all() and (found[1] == -np.inf).all()
  assert not np.any(gradient[:2]) and np.isfinite(gradient).all()


def test_logits_that_are_not_finite_stay_visible():
  for wrong in (np.nan, np.inf):
    z = S.copy()
    z[0, 0] = wrong
    assert np.isnan(standardized(z)[0]).any() and np.isfinite(standardized(z)[1:]).all()


def test_bfloat16_is_computed_in_float32():
  z = jnp.asarray(S, jnp.bfloat16)
  assert standardized(z).dtype == jnp.float32
  np.testing.assert_array_equal(standardized(z), standardized(z.astype(jnp.float32)))


def test_labels_are_compared_with_the_logits_as_they_are():
  labels = np.array([0, 1, 2, 3])
  losses = [
    knowledge_distillation(
      Output(S), Output(T), labels, soft_weight=0.0, hard_weight=1.0, standardize=on
    ).total
    for on in (False, True)
  ]
  assert losses[0] == losses[1]


def test_error_for_an_output_in_place_of_logits():
  with pytest.raises(ConfigError, match="standardized takes arrays, got an Output"):
    standardized(Output(S))
