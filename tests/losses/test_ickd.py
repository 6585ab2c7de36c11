"""ICKD: definition, invariances, channels of zeros."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.losses import channel_correlation_mse, inter_channel_correlation
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
compute = jit(jax.value_and_grad(channel_correlation_mse), static_argnames="eps")


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


def expected(student, teacher):
  """The loss by its definition, for channels that are not zero."""

  def correlations(x):
    x = x.reshape(len(x), -1, x.shape[-1]).astype("float64")
    gram = x.transpose(0, 2, 1) @ x
    return gram / np.linalg.norm(gram, axis=2, keepdims=True)

  gap = correlations(student) - correlations(teacher)
  return (gap**2).sum() / (len(student) * student.shape[-1])


@pytest.mark.parametrize("scale", [1.0, 1e8, 1e-18])
def test_loss_equals_the_definition_at_any_scale(scale):
  s, t = draw(4, 2, 2, 3), draw(4, 3, 3, 3, seed=1)
  value, gradient = compute(np.float32(scale) * s, t)
  np.testing.assert_allclose(value, expected(s, t), rtol=1e-5)
  assert np.isfinite(gradient).all() and gradient.any()


def test_correlations_ignore_the_order_of_positions_and_are_0_at_equality():
  s, t = draw(4, 2, 2, 3), draw(4, 2, 2, 3, seed=1)
  value, _ = compute(s, t)
  np.testing.assert_allclose(compute(s[:, ::-1, ::-1], t)[0], value, rtol=1e-5)
  assert compute(s, s)[0] == 0
  # The order of channels matters.
  assert compute(s[..., ::-1], s)[0] > 1e-2


def test_row_of_a_channel_of_zeros_takes_no_gradient_without_eps():
  s, t = draw(4, 2, 2, 3), draw(4, 2, 2, 3, seed=1)
  s[..., 1] = 0
  value, gradient = compute(s, t)
  assert gradient[..., 0].any() and np.abs(gradient).max() < 10
  published, slope = compute(s, t, eps=1e-6)
  np.testing.assert_allclose(published, value, rtol=1e-6)
  assert np.abs(slope[..., 1]).max() > 1e4


@pytest.mark.parametrize(
  ("student", "teacher", "message"),
  [
    ((2, 4, 4, 3), (2, 4, 4, 5), r"stage 'stage3': .*teacher \(2, 4, 4, 5\) differ in channels"),
    ((2, 3), (2, 3), r"student \(2, 3\) is not a feature map"),
  ],
)
def test_error_for_wrong_shapes_names_them(student, teacher, message):
  s, t = (Output(features={"stage3": jnp.ones(shape)}) for shape in (student, teacher))
  with pytest.raises(ConfigError, match=message):
    inter_channel_correlation(s, t)
