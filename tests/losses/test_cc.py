"""CC: its published forms, invariances, degenerate inputs, embeddings of both sides."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.adapters import Embeddings
from jaxkd.errors import ConfigError
from jaxkd.losses import adjacent_products, correlation_congruence, kernel_correlation
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
compute = jit(jax.value_and_grad(kernel_correlation))
adjacent = jit(jax.value_and_grad(adjacent_products, (0, 1)), static_argnames="detached")


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


def expected(student, teacher, gamma=0.4, order=2):
  """The loss by the paper's formula."""

  def correlations(x):
    x = x.reshape(len(x), -1).astype("float64")
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    x = np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)
    terms = ((2 * gamma) ** p / math.factorial(p) * (x @ x.T) ** p for p in range(order + 1))
    return math.exp(-2 * gamma) * sum(terms)

  return ((correlations(student) - correlations(teacher)) ** 2).mean()


@pytest.mark.parametrize("scale", [1.0, 1e8, 1e-18])
def test_loss_equals_the_definition_at_any_scale(scale):
  s, t = draw(6, 2, 2, 3), draw(6, 5, seed=1)
  s[3] = 0
  value, gradient = compute(np.float32(scale) * s, t)
  np.testing.assert_allclose(value, expected(s, t), rtol=1e-5)
  assert np.isfinite(gradient).all() and gradient[2].any() and not gradient[3].any()


def test_expansion_approaches_the_gaussian_of_distances():
  s, t = draw(5, 4), draw(5, 3, seed=1)

  def gaussian(x):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.exp(-0.4 * ((x[:, None] - x[None]) ** 2).sum(2))

  value = jit(functools.partial(kernel_correlation, order=9))(s, t)
  np.testing.assert_allclose(value, ((gaussian(s) - gaussian(t)) ** 2).mean(), rtol=1e-4)


def test_correlations_ignore_rotation_and_scale_and_are_0_at_equality():
  s, t = draw(6, 4), draw(6, 4, seed=1)
  rotation, _ = np.linalg.qr(draw(4, 4, seed=2))
  value, _ = compute(s, t)
  np.testing.assert_allclose(compute(3 * s @ rotation, t)[0], value, rtol=1e-4)
  assert compute(s, s)[0] == 0 and compute(s + 1, s)[0] > 1e-3


def test_adjacent_products_equal_the_definition_and_skip_masked_examples():
  s, t = draw(6, 3), draw(6, 3, seed=1)
  gaps = np.abs(s - t)
  value, (gradient, of_teacher) = adjacent(s, t)
  np.testing.assert_allclose(value, (gaps[:-1] * gaps[1:]).sum(1).mean(), rtol=1e-6)
  assert gradient.any() and not of_teacher.any()
  where = np.array([0, 1, 0, 0, 1, 1])
  value, _ = adjacent(s, t, where=where)
  gaps = gaps[where == 1]
  np.testing.assert_allclose(value, (gaps[:-1] * gaps[1:]).sum(1).mean(), rtol=1e-6)
  value, (gradient, _) = adjacent(s[:1], t[:1])
  assert value == 0 and not gradient.any()


def test_embedded_teacher_learns_where_it_is_not_detached():
  s, t = (Output(features={"pooled": draw(4, n, seed=n)}) for n in (3, 5))
  module = Embeddings((("pooled", "pooled"),), width=2)
  params = jit(functools.partial(module.init, train=True))(jax.random.key(0), (s, t, None))

  def loss(params, detached):
    ours, theirs = module.apply(params, (s, t, None), train=True)
    return correlation_congruence(ours, theirs, form="adjacent", detached=detached).total

  for detached in (True, False):
    slopes = jit(jax.grad(functools.partial(loss, detached=detached)))(params)["params"]
    assert slopes["student_pooled"]["kernel"].any()
    assert bool(slopes["teacher_pooled"]["kernel"].any()) == (not detached)


@pytest.mark.parametrize(
  ("teacher", "options", "message"),
  [
    ((2, 3), {"form": "gauss"}, "unknown form 'gauss'"),
    ((2, 3), {"norm": "l1"}, "unknown norm 'l1'"),
    ((2, 3), {"order": 0}, "order is 0: expected 1 or more"),
    ((2, 3), {"gamma": -1.0}, "gamma is -1.0: it must be a finite number greater than 0"),
    ((3, 3), {}, r"student \(2, 3\) and teacher \(3, 3\) differ in batch size"),
    (
      (2, 4),
      {"form": "adjacent"},
      r"teacher \(2, 4\) differ in shape; jaxkd.adapters",
    ),
  ],
)
def test_error_for_wrong_arguments_names_them(teacher, options, message):
  s, t = (Output(features={"pooled": jnp.ones(shape)}) for shape in ((2, 3), teacher))
  with pytest.raises(ConfigError, match=message):
    correlation_congruence(s, t, **options)
