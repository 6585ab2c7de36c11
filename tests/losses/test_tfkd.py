"""Tf-KD: the definition, its minimum, and what a virtual teacher of temperature 1 is not."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.errors import ConfigError
from jaxkd.losses import virtual_teacher, virtual_teacher_kl
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

LABELS = np.array([0, 3, 1, 1, 4, 2])


@functools.partial(jit, static_argnames=("temperature", "classes"))
def compute(student, labels=LABELS, weights=None, temperature=2.0, classes="sum"):
  loss = functools.partial(virtual_teacher_kl, temperature=temperature, classes=classes)
  return jax.value_and_grad(loss)(student, labels, weights)


def draw(scale=1.0, seed=0):
  return (np.random.default_rng(seed).normal(size=(6, 5)) * scale).astype("float32")


def virtual(temperature):
  d = np.full((6, 5), 0.01 / 4)
  d[np.arange(6), LABELS] = 0.99
  u = np.exp(d / temperature)
  return u / u.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [2.0, 20.0])
def test_loss_equals_the_definition(temperature):
  s = draw(2.0)
  p = np.exp(s.astype("float64"))
  p, u = p / p.sum(1, keepdims=True), virtual(temperature)
  wanted = (u * np.log(u / p)).sum(1).mean()
  np.testing.assert_allclose(compute(s, temperature=temperature)[0], wanted, rtol=1e-5)
  mean = compute(s, temperature=temperature, classes="mean")[0]
  np.testing.assert_allclose(mean, wanted / 5, rtol=1e-5)
  found = virtual_teacher(Output(s), LABELS, temperature=temperature).logit
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_loss_is_zero_at_the_virtual_teachers_distribution_alone():
  s = np.log(virtual(2.0)).astype("float32")
  value, gradient = compute(s)
  assert 0 <= value < 1e-9 and np.abs(gradient).max() < 1e-6
  assert compute(np.roll(s, 1, axis=1))[0] > 1e-3


@given(st.integers(0, 2**16), st.sampled_from([1e-18, 1e-3, 1.0, 1e4, 1e8]))
def test_values_are_finite_and_not_negative(seed, scale):
  value, gradient = compute(draw(scale, seed))
  assert 0 <= value < np.inf and np.isfinite(gradient).all()


def test_the_mean_is_that_of_the_labels_by_their_weights():
  s = draw()
  weights = np.array([1.0, 0.0, 2.0, 0.0, 0.0, 0.0], "float32")
  s[1] = np.nan
  labels = np.where(weights > 0, LABELS, -1)
  one, two = (compute(s[i : i + 1], LABELS[i : i + 1])[0] for i in (0, 2))
  np.testing.assert_allclose(compute(s, labels, weights)[0], (one + 2 * two) / 3, rtol=1e-5)
  assert np.isnan(compute(draw(), np.where(weights > 1, 5, LABELS))[0])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"correct_probability": 1.5}, "correct_probability is 1.5: it must lie between 0 and 1"),
    ({"temperature": 0.0}, "temperature is 0.0: it must be a finite number"),
    ({"classes": "max"}, "classes='max': expected 'sum' or 'mean'"),
  ],
)
def test_error_for_wrong_options_names_them(options, message):
  with pytest.raises(ConfigError, match=message):
    virtual_teacher(Output(jnp.ones((2, 3))), [0, 1], **options)
