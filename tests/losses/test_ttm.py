"""TTM and WTTM: the definition, where they are KD, certain teachers, impossible classes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.errors import ConfigError
from jaxkd.losses import soft_target_kl, transformed_teacher_kl, transformed_teacher_matching
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.partial(jit, static_argnames="weighted")
def compute(student, teacher, exponent=0.2, weighted=False):
  loss = functools.partial(transformed_teacher_kl, exponent=exponent, weighted=weighted)
  return jax.value_and_grad(loss)(student, teacher)


def draw(scale=1.0, seed=0):
  pair = np.random.default_rng(seed).normal(size=(2, 6, 5)) * scale
  return pair.astype("float32")


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_equals_the_definition(weighted):
  s, t = (z.astype("float64") for z in draw(3.0))
  p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (s, t))
  power = q**0.2
  n = power.sum(1)
  q = power / n[:, None]
  each = (q * np.log(q / p)).sum(1)
  wanted = np.mean((n if weighted else 1.0) * each)
  np.testing.assert_allclose(compute(*draw(3.0), weighted=weighted)[0], wanted, rtol=1e-5)
  terms = transformed_teacher_matching(*map(Output, draw(3.0)), exponent=0.2, weighted=weighted)
  np.testing.assert_allclose(terms.logit, wanted, rtol=1e-5)


@given(st.integers(0, 2**16))
def test_an_exponent_of_one_is_kd_without_a_temperature(seed):
  s, t = draw(2.0, seed)
  kl = soft_target_kl(s, t, temperature=1.0)
  for weighted in (False, True):
    np.testing.assert_allclose(compute(s, t, 1.0, weighted)[0], kl, rtol=1e-5, atol=1e-7)
  value, gradient = compute(s, s, 1.0, True)
  assert value == 0 and not np.any(gradient)


@given(st.integers(0, 2**16), st.sampled_from([1e-18, 1e-3, 1.0, 1e4, 1e8]))
def test_values_are_finite_and_not_negative(seed, scale):
  for weighted in (False, True):
    value, gradient = compute(*draw(scale, seed), 0.1, weighted)
    assert 0 <= value < np.inf and np.isfinite(gradient).all()


@given(st.integers(0, 2**16))
def test_a_weight_is_between_one_and_that_of_a_uniform_teacher(seed):
  s, t = draw(2.0, seed)
  ratio = compute(s[:1], t[:1], 0.2, True)[0] / compute(s[:1], t[:1], 0.2, False)[0]
  assert 1 - 1e-5 <= ratio <= 5**0.8 + 1e-4


def test_shifts_of_either_side_have_no_effect():
  s, t = draw()
  value, moved = compute(s, t, 0.2, True)[0], compute(s + 3.0, t - 2.0, 0.2, True)[0]
  np.testing.assert_allclose(moved, value, rtol=1e-5)


def test_impossible_classes_add_nothing():
  s, t = draw()
  s[:, 1] = t[:, 1] = -np.inf
  for weighted in (False, True):
    value, gradient = compute(s, t, 0.5, weighted)
    possible = compute(np.delete(s, 1, 1), np.delete(t, 1, 1), 0.5, weighted)[0]
    np.testing.assert_allclose(value, possible, rtol=1e-5)
    assert np.isfinite(gradient).all() and not np.any(gradient[:, 1])


def test_dense_logits_equal_their_flattened_rows():
  s, t = (z.reshape(2, 3, 5) for z in draw())
  np.testing.assert_allclose(compute(s, t)[0], compute(*draw())[0], rtol=1e-5)


@pytest.mark.parametrize(
  ("teacher", "options", "message"),
  [
    ((2, 4), {}, r"student \(2, 3\) and teacher \(2, 4\) differ in shape"),
    ((2, 3), {"exponent": 0.0}, "exponent is 0.0: it must be a finite number"),
  ],
)
def test_error_for_wrong_arguments_names_them(teacher, options, message):
  with pytest.raises(ConfigError, match=message):
    transformed_teacher_matching(Output(jnp.ones((2, 3))), Output(jnp.ones(teacher)), **options)
