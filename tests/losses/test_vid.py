"""VID: definition, the best variance, regressors of both kinds of features, refusals."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.adapters import VariationalRegressors, variational_regressor_for
from jaxkd.errors import ConfigError
from jaxkd.losses import gaussian_log_loss, variational_information
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
compute = jit(jax.value_and_grad(gaussian_log_loss, (0, 1, 2)))


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.parametrize("scale", [1.0, 1e8, 1e-18])
def test_loss_equals_the_definition(scale):
  s, t, v = np.float32(scale) * draw(4, 3, 3, 5), draw(4, 3, 3, 5, seed=1), np.exp(draw(5, seed=2))
  value, (gradient, of_teacher, of_variance) = compute(s, t, v)
  wanted = (((s.astype("float64") - t) ** 2 / v + np.log(v)) / 2).mean()
  np.testing.assert_allclose(value, wanted, rtol=1e-5)
  np.testing.assert_allclose(gradient, (s - t) / v / s.size, rtol=1e-4, atol=1e-9)
  assert not of_teacher.any() and np.isfinite(of_variance).all()


def test_the_best_variance_is_the_mean_squared_difference():
  s, t = draw(50, 3), draw(50, 3, seed=1)
  best = ((s - t) ** 2).mean(0)
  value, (_, _, slope) = compute(s, t, best)
  np.testing.assert_allclose(slope, 0, atol=1e-6)
  for other in (0.8 * best, 1.2 * best):
    assert compute(s, t, other)[0] > value
  # At equality the loss is that of the variance alone.
  np.testing.assert_allclose(compute(s, s, best)[0], np.log(best).mean() / 2, rtol=1e-5)


@pytest.mark.parametrize(
  ("student", "teacher", "predicted"),
  [
    ((2, 6, 6, 3), (2, 3, 3, 4), (2, 3, 3, 4)),
    ((2, 2, 2, 3), (2, 4, 4, 5), (2, 2, 2, 5)),
    ((2, 3), (2, 4), (2, 4)),
    ((2, 5, 3), (2, 5, 4), (2, 5, 4)),
  ],
)
def test_regressors_start_at_the_initial_variance_and_learn(student, teacher, predicted):
  s, t = Output(features={"x": draw(*student)}), Output(features={"x": draw(*teacher, seed=1)})
  regressor = variational_regressor_for(student, teacher, stage="x", initial_variance=3.0)
  module = VariationalRegressors({"x": regressor})
  params = jit(functools.partial(module.init, train=True))(jax.random.key(0), (s, t, None))

  def loss(params):
    ours, theirs = module.apply(params, (s, t, None), train=True)
    return variational_information(ours, theirs, stages=["x"]).total, ours.features

  (_, found), slopes = jit(jax.value_and_grad(loss, has_aux=True))(params)
  assert found["x"].shape == predicted
  np.testing.assert_allclose(found["x_variance"], 3.0, rtol=1e-5)
  assert all(leaf.any() for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize(
  ("student", "teacher", "message"),
  [
    ((2, 4, 2, 3), (2, 2, 4, 3), "more rows but fewer columns"),
    ((2, 3), (2, 4, 4, 3), r"both must be \(B, H, W, C\)"),
    ((2, 4, 3), (2, 5, 3), r"both must be \(B, H, W, C\)"),
  ],
)
def test_shapes_without_a_regressor_are_refused(student, teacher, message):
  with pytest.raises(ConfigError, match=rf"stage 'x': no regressor from student .*{message}"):
    variational_regressor_for(student, teacher, stage="x")


def test_error_for_a_missing_or_wrong_variance_names_it():
  x = Output(features={"a": jnp.ones((2, 3))})
  with pytest.raises(ConfigError, match="unknown student stage 'a_variance'"):
    variational_information(x, x, stages=["a"])
  wrong = Output(features={**x.features, "a_variance": jnp.ones(4)})
  with pytest.raises(ConfigError, match=r"stage 'a': .*variance \(4,\) does not fit .*\(3,\)"):
    variational_information(wrong, x, stages=["a"])
