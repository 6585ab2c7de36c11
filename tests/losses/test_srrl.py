"""SRRL: definition, impossible classes, refusals."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.losses import logit_mse, softmax_regression
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
compute = jit(jax.value_and_grad(logit_mse, (0, 1)))


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_loss_equals_the_definition():
  s = Output(draw(4, 5), {"x": draw(4, 3, 3, 2, seed=1)})
  t = Output(draw(4, 5, seed=2), {"y": draw(4, 2, 2, 2, seed=3)})
  loss = jit(functools.partial(softmax_regression, stages=(("x", "y"),), logit_weight=3.0))
  terms = loss(s, t)
  means = (x.mean((1, 2)) for x in (s.features["x"], t.features["y"]))
  gap = np.subtract(*means)
  np.testing.assert_allclose(terms.feature, (gap**2).mean(), rtol=1e-5)
  np.testing.assert_allclose(terms.logit, 3 * ((s.logits - t.logits) ** 2).mean(), rtol=1e-5)


def test_impossible_classes_add_nothing_and_take_no_gradient():
  s, t = draw(3, 4), draw(3, 4, seed=1)
  s[0, 1] = t[0, 1] = t[1, 2] = s[2, 3] = -np.inf
  value, (gradient, of_teacher) = compute(s, t)
  possible = np.isfinite(s) & np.isfinite(t)
  np.testing.assert_allclose(value, ((s[possible] - t[possible]) ** 2).sum() / s.size, rtol=1e-6)
  assert np.isfinite(gradient).all() and not gradient[~possible].any() and not of_teacher.any()


@pytest.mark.parametrize(
  ("logits", "features", "message"),
  [
    ((2, 4), (2, 3), r"logit_mse: student \(2, 5\) and teacher \(2, 4\) differ in shape"),
    ((2, 5), (2, 4), r"stage 'stage3': hint_mse: student \(2, 3\) and teacher \(2, 4\) differ"),
  ],
)
def test_error_for_wrong_shapes_names_them(logits, features, message):
  s = Output(jnp.ones((2, 5)), {"stage3": jnp.ones((2, 3))})
  t = Output(jnp.ones(logits), {"stage3": jnp.ones(features)})
  with pytest.raises(ConfigError, match=message):
    softmax_regression(s, t)
