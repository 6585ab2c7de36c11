"""Knowledge distillation: the KL divergence with soft targets, and its mix with labels."""

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
from jaxkd.losses import cross_entropy, knowledge_distillation, soft_target_kl
from jaxkd.types import Output

LOGITS = hnp.arrays(np.float32, (4, 5), elements=st.floats(-1e4, 1e4, width=32))
MILD = hnp.arrays(np.float32, (4, 5), elements=st.floats(-20, 20, width=32))
kl_and_gradient = jax.jit(jax.value_and_grad(soft_target_kl))


@given(LOGITS, LOGITS)
def test_kl_is_finite_and_not_negative(student, teacher):
  value, gradient = kl_and_gradient(student, teacher)
  assert 0 <= value < np.inf
  assert np.isfinite(gradient).all()


@given(LOGITS)
def test_kl_of_equal_logits_is_zero(logits):
  value, gradient = kl_and_gradient(logits, logits)
  assert value == 0
  np.testing.assert_allclose(gradient, 0, atol=1e-6)


@given(MILD, MILD, hnp.arrays(np.float32, (4, 1), elements=st.floats(-10, 10, width=32)))
def test_kl_ignores_a_shift_of_the_logits(student, teacher, shift):
  np.testing.assert_allclose(
    kl_and_gradient(student + shift, teacher - shift)[0],
    kl_and_gradient(student, teacher)[0],
    rtol=1e-4,
    atol=1e-4,
  )


@given(MILD, MILD, st.permutations(range(5)))
def test_kl_ignores_the_order_of_the_classes(student, teacher, order):
  np.testing.assert_allclose(
    kl_and_gradient(student[:, order], teacher[:, order])[0],
    kl_and_gradient(student, teacher)[0],
    rtol=1e-4,
    atol=1e-5,
  )


def test_kl_equals_the_definition():
  s, t, temperature = np.array([[0.0, 1.0, 3.0]]), np.array([[2.0, 0.0, 1.0]]), 2.0
  p, q = (np.exp(z / temperature) / np.exp(z / temperature).sum() for z in (t, s))
  expected = (p * np.log(p / q)).sum()
  value = soft_target_kl(s, t, temperature=temperature)
  np.testing.assert_allclose(value, temperature**2 * expected, rtol=1e-6)
  plain = soft_target_kl(s, t, temperature=temperature, squared_temperature=False)
  np.testing.assert_allclose(plain, expected, rtol=1e-6)


def test_squared_temperature_keeps_the_size_of_the_gradient():
  rng = np.random.default_rng(0)
  s, t = rng.normal(size=(2, 8, 10))
  sizes = [
    np.abs(jax.jit(jax.grad(functools.partial(soft_target_kl, temperature=T)))(s, t)).mean()
    for T in (20.0, 200.0)
  ]
  np.testing.assert_allclose(sizes[0], sizes[1], rtol=0.1)


def test_kl_at_a_high_temperature_does_not_cancel_in_float32():
  rng = np.random.default_rng(0)
  s, t = rng.normal(size=(2, 8, 10))
  value = soft_target_kl(s, t, temperature=200.0)
  with jax.enable_x64(True):
    np.testing.assert_allclose(value, soft_target_kl(s, t, temperature=200.0), rtol=1e-5)


def test_temperature_may_be_traced():
  s, t = jnp.eye(3), -jnp.eye(3)
  value = jax.jit(lambda T: soft_target_kl(s, t, temperature=T))(3.0)
  np.testing.assert_allclose(value, soft_target_kl(s, t, temperature=3.0), rtol=1e-6)


@pytest.mark.parametrize("temperature", [0, -1.5, float("nan"), float("inf"), np.float32(0)])
def test_temperature_must_be_positive(temperature):
  with pytest.raises(ConfigError, match=r"temperature is .*: it must be .* greater than 0"):
    soft_target_kl(jnp.eye(2), jnp.eye(2), temperature=temperature)


def test_error_for_different_class_counts_names_both_shapes():
  with pytest.raises(ValueError, match=r"student \(8, 10\) and teacher \(8, 100\) differ"):
    jax.eval_shape(soft_target_kl, jnp.ones((8, 10)), jnp.ones((8, 100)))


def test_one_class_gives_zero_value_and_gradient():
  value, gradient = jax.value_and_grad(soft_target_kl)(jnp.ones((1, 1)), jnp.zeros((1, 1)))
  assert value == 0 and gradient == 0


def test_soft_and_hard_weight_mix_the_two_terms():
  s, t, y = Output(jnp.eye(3)), Output(2.0 * jnp.eye(3)), jnp.array([0, 1, 0])
  soft = soft_target_kl(s.logits, t.logits)
  hard = cross_entropy(s.logits, y)
  mixed = knowledge_distillation(s, t, y, soft_weight=0.9, hard_weight=0.1).logit
  np.testing.assert_allclose(mixed, 0.9 * soft + 0.1 * hard, rtol=1e-6)
  np.testing.assert_allclose(knowledge_distillation(s, t, y).logit, soft, rtol=1e-6)


def test_error_for_missing_labels_or_logits_names_them():
  z = Output(jnp.eye(2))
  with pytest.raises(ConfigError, match=r"hard_weight is 0\.1 but no labels"):
    knowledge_distillation(z, z, hard_weight=0.1)
  with pytest.raises(ConfigError, match="teacher's Output has no logits"):
    knowledge_distillation(z, Output())
