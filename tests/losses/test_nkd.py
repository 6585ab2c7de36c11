"""NKD: the definition, its relation to cross-entropies and DKD, certain networks."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.errors import ConfigError
from jaxkd.losses import (
  normalized_distillation,
  other_classes_cross_entropy,
  other_classes_kl,
  soft_target_kl,
)
from jaxkd.losses._numerics import entropy, log_probabilities
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

LABELS = np.array([0, 3, 1, 1, 4, 2])


@functools.partial(jit, static_argnames="options")
def compute(student, teacher, options=()):
  """Both terms, and the gradient of their sum."""

  def loss(s):
    terms = normalized_distillation(Output(s), Output(teacher), LABELS, **dict(options))
    return terms["target"].logit + terms["others"].logit, terms

  (_, terms), gradient = jax.value_and_grad(loss, has_aux=True)(student)
  return terms["target"].logit, terms["others"].logit, gradient


def draw(scale=1.0, seed=0):
  pair = np.random.default_rng(seed).normal(size=(2, 6, 5)) * scale
  return pair.astype("float32")


@pytest.mark.parametrize("without_target", [True, False])
def test_both_terms_equal_the_definition(without_target):
  s, t = draw(3.0)
  target = others = 0.0
  for z, w, y in zip(s.astype("float64"), t.astype("float64"), LABELS, strict=True):
    p, q = (np.exp(x) / np.exp(x).sum() for x in (z, w))
    target -= q[y] * np.log(p[y]) / 6
    p, q = (
      np.exp(x / 3) for x in ((np.delete(z, y), np.delete(w, y)) if without_target else (z, w))
    )
    others -= 9 * (q / q.sum() * np.log(p / p.sum())).sum() / 6
  options = (("temperature", 3.0), ("others_weight", 2.0), ("without_target", without_target))
  found = compute(s, t, options)
  np.testing.assert_allclose(found[:2], [target, 2 * others], rtol=1e-5)


@given(st.integers(0, 2**16))
def test_the_others_are_dkds_plus_the_teachers_entropy(seed):
  s, t = draw(2.0, seed)
  cross = other_classes_cross_entropy(s, t, LABELS, temperature=2.0, without_target=False)
  plain = soft_target_kl(s, t, temperature=2.0) + 4 * entropy(log_probabilities(t, 2.0)).mean()
  np.testing.assert_allclose(cross, plain, rtol=1e-5)


def test_the_others_have_the_gradient_of_dkds():
  s, t = draw(2.0)
  ours, theirs = (
    jit(jax.grad(functools.partial(kernel, temperature=2.0)))(s, t, LABELS)
    for kernel in (other_classes_cross_entropy, other_classes_kl)
  )
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@given(st.integers(0, 2**16), st.sampled_from([1e-18, 1e-3, 1.0, 1e4, 1e8]))
def test_terms_are_finite_and_not_negative(seed, scale):
  target, others, gradient = compute(*draw(scale, seed))
  assert 0 <= target < np.inf and 0 <= others < np.inf
  assert np.isfinite(gradient).all()


def test_a_teacher_that_excludes_the_target_leaves_its_term_out():
  s, t = draw()
  t[np.arange(6), LABELS] = -np.inf
  target, others, gradient = compute(s, t)
  assert target == 0 and np.isfinite(others) and np.isfinite(gradient).all()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"labels": [0, 1, 2]}, r"labels \(3,\) of int32 do not belong to logits \(2, 3\)"),
    ({"temperature": 0.0}, "temperature is 0.0: it must be a finite number"),
  ],
)
def test_error_for_wrong_arguments_names_them(options, message):
  z = Output(jnp.ones((2, 3)))
  with pytest.raises(ConfigError, match=message):
    normalized_distillation(z, z, **{"labels": [0, 1], **options})
