"""Multi-label losses: their formulas in float64, weights, masks, extremes, the teacher's side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxkd import losses
from jaxkd.errors import ConfigError

LOGITS = hnp.arrays(np.float64, (4, 3), elements=st.floats(-20, 20))
PROBABILITIES = hnp.arrays(np.float64, (4, 3), elements=st.floats(0, 1))
FLAGS = hnp.arrays(np.bool_, 4)


def binary(z, y):
  """Binary cross-entropy in float64, without a sigmoid that rounds to 1."""
  return y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z)


def divergence(s, t, temperature):
  s, t = s / temperature, t / temperature
  p = 1 / (1 + np.exp(-t))
  return binary(s, p) - binary(t, p)


@given(LOGITS, PROBABILITIES, st.floats(0, 1))
def test_cross_entropy_is_the_mean_of_the_binary_ones(z, y, smoothing):
  with jax.enable_x64(True):
    found = losses.sigmoid_cross_entropy(z, y, label_smoothing=smoothing)
    total = losses.sigmoid_cross_entropy(z, y, label_smoothing=smoothing, classes="sum")
  wanted = binary(z, (1 - smoothing) * y + smoothing / 2).mean()
  np.testing.assert_allclose([found, total], [wanted, 3 * wanted], rtol=1e-9, atol=1e-12)


@given(LOGITS, LOGITS, st.floats(0.5, 8))
def test_divergence_is_the_formula_and_never_negative(s, t, temperature):
  with jax.enable_x64(True):
    found = float(losses.sigmoid_kl(s, t, temperature=temperature))
    same = float(losses.sigmoid_kl(t, t, temperature=temperature))
  wanted = temperature**2 * divergence(s, t, temperature).mean()
  np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-9)
  assert found >= 0
  assert same == 0


@pytest.mark.long
@given(LOGITS, PROBABILITIES, FLAGS)
def test_masked_examples_do_not_count_compiled_or_not(z, y, where):
  for loss, other in ((losses.sigmoid_cross_entropy, y), (losses.sigmoid_kl, 4 * y - 2)):
    left = [np.where(where[:, None], x, np.nan).astype(np.float32) for x in (z, other)]
    found = loss(*left, where=where), jax.jit(loss)(*left, where=where)
    wanted = loss(np.float32(z[where]), np.float32(other[where])) if where.any() else 0.0
    np.testing.assert_allclose(found, [wanted] * 2, rtol=1e-5, atol=1e-6)


@given(LOGITS, LOGITS)
def test_teacher_takes_no_gradient_and_the_student_that_of_the_formula(s, t):
  with jax.enable_x64(True):
    of_student, of_teacher = jax.grad(losses.sigmoid_kl, (0, 1))(s, t, temperature=2.0)
  p, q = (1 / (1 + np.exp(-x / 2.0)) for x in (t, s))
  np.testing.assert_allclose(of_student, 2.0 * (q - p) / s.size, atol=1e-9)
  assert not np.any(of_teacher)


def test_unknown_classes_have_weight_zero_one_by_one():
  z, y = jnp.array([[3.0, -1.0], [0.0, 2.0]]), jnp.array([[1.0, 7.0], [0.0, 1.0]])
  known = jnp.array([[1.0, 0.0], [1.0, 1.0]])
  wanted = binary(np.array([3.0, 0.0, 2.0]), np.array([1.0, 0.0, 1.0])).mean()
  np.testing.assert_allclose(losses.sigmoid_cross_entropy(z, y, known), wanted, rtol=1e-6)
  # The label 7 is no probability: it is not overlooked where it counts.
  assert jnp.isnan(losses.sigmoid_cross_entropy(z, y))
  assert jnp.isnan(jax.grad(losses.sigmoid_cross_entropy)(z, y)).any()


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int32", "float32", "bfloat16"])
def test_labels_of_any_type_are_the_same_numbers(dtype):
  z, y = jnp.array([[3.0, -1.0]]), jnp.array([[1, 0]])
  wanted = losses.sigmoid_cross_entropy(z, jnp.float32(y))
  assert losses.sigmoid_cross_entropy(z, y.astype(dtype)) == wanted


def test_large_logits_do_not_overflow_and_impossible_classes_add_nothing():
  z, y = jnp.array([[1e4, -1e4, -jnp.inf]]), jnp.array([[0, 1, 0]])
  value, gradient = jax.value_and_grad(losses.sigmoid_cross_entropy)(z, y)
  np.testing.assert_allclose(value, 2e4 / 3)
  np.testing.assert_allclose(gradient, [[1 / 3, -1 / 3, 0]], atol=1e-6)
  assert losses.sigmoid_cross_entropy(z, jnp.ones((1, 3))) == jnp.inf


def test_wrong_arguments_are_named():
  z = jnp.zeros((2, 3))
  with pytest.raises(ConfigError, match=r"labels \(2,\) do not belong to logits \(2, 3\)"):
    losses.sigmoid_cross_entropy(z, jnp.zeros(2))
  for call in (losses.sigmoid_cross_entropy, losses.sigmoid_kl):
    with pytest.raises(ConfigError, match="classes='max': expected 'mean' or 'sum'"):
      call(z, z, classes="max")
  with pytest.raises(ConfigError, match="temperature"):
    losses.sigmoid_kl(z, z, temperature=0.0)
