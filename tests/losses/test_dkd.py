"""DKD: the definition, its relation to KD, two classes, certain networks, the published warm-up."""

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
  decoupled_distillation,
  other_classes_kl,
  soft_target_kl,
  target_class_kl,
)
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

LABELS = np.array([0, 3, 1, 1, 4, 2])


@jit
def parts(student, teacher, labels=LABELS, temperature=2.0):
  """Both terms and their gradients, without weights."""

  def one(kernel):
    return jax.value_and_grad(lambda s: kernel(s, teacher, labels, temperature=temperature))(
      student
    )

  return one(target_class_kl), one(other_classes_kl)


def draw(classes=5, scale=1.0, seed=0):
  pair = np.random.default_rng(seed).normal(size=(2, 6, classes)) * scale
  return pair.astype("float32")


def expected(student, teacher, labels, temperature):
  """Both terms by the paper's formulas, in float64."""
  target = others = 0.0
  for s, t, y in zip(*(x.astype("float64") for x in (student, teacher)), labels, strict=True):
    p, q = (np.exp(z / temperature) / np.exp(z / temperature).sum() for z in (s, t))
    target += q[y] * np.log(q[y] / p[y]) + (1 - q[y]) * np.log((1 - q[y]) / (1 - p[y]))
    p, q = (np.delete(x, y) / (1 - x[y]) for x in (p, q))
    others += (q * np.log(q / p)).sum()
  return temperature**2 * target / len(labels), temperature**2 * others / len(labels)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_both_terms_equal_the_definition(temperature):
  s, t = draw(scale=3.0)
  found = [value for value, _ in parts(s, t, temperature=temperature)]
  np.testing.assert_allclose(found, expected(s, t, LABELS, temperature), rtol=1e-5)
  weighted = decoupled_distillation(
    Output(s), Output(t), LABELS, target_weight=0.5, others_weight=3.0, temperature=temperature
  )
  assert list(weighted) == ["target", "others"]
  np.testing.assert_allclose(weighted["target"].logit, 0.5 * found[0], rtol=1e-6)
  np.testing.assert_allclose(weighted["others"].logit, 3.0 * found[1], rtol=1e-6)


@given(st.integers(0, 2**16))
def test_kd_is_the_target_term_plus_the_others_by_the_teachers_doubt(seed):
  s, t = draw(scale=2.0, seed=seed)
  # One example: the factor 1 - p of the teacher differs between examples.
  (target, _), (others, _) = parts(s[:1], t[:1], LABELS[:1])
  doubt = 1 - jax.nn.softmax(t[0] / 2.0)[LABELS[0]]
  kl = soft_target_kl(s[:1], t[:1], temperature=2.0)
  np.testing.assert_allclose(target + doubt * others, kl, rtol=1e-4, atol=1e-6)


@given(st.integers(0, 2**16), st.sampled_from([1e-18, 1e-3, 1.0, 1e4, 1e8]))
def test_terms_are_zero_at_equality_and_finite_and_not_negative_elsewhere(seed, scale):
  s, t = draw(scale=scale, seed=seed)
  for (value, gradient), (same, none) in zip(parts(s, t), parts(s, s), strict=True):
    assert 0 <= value < np.inf and np.isfinite(gradient).all()
    assert same == 0 and not np.any(none)


@given(st.integers(0, 2**16), st.floats(-100, 100, width=32))
def test_the_targets_logit_and_a_shift_of_all_do_not_change_the_others_term(seed, shift):
  s, t = draw(seed=seed)
  moved = s + np.float32(shift)
  moved[np.arange(6), LABELS] -= 7.0
  np.testing.assert_allclose(parts(moved, t)[1][0], parts(s, t)[1][0], rtol=1e-3, atol=1e-5)


def test_standardised_logits_ignore_scale_and_shift_of_either_side():
  s, t = draw()

  def value(s, t):
    terms = decoupled_distillation(Output(s), Output(t), LABELS, standardize=True)
    return [terms["target"].logit, terms["others"].logit]

  np.testing.assert_allclose(value(3 * s + 1, 0.5 * t - 2), value(s, t), rtol=1e-4)


def test_two_classes_leave_nothing_but_the_target():
  s, t = draw(classes=2)
  labels = LABELS % 2
  (target, _), (others, gradient) = parts(s, t, labels)
  np.testing.assert_allclose(target, soft_target_kl(s, t, temperature=2.0), rtol=1e-5)
  assert others == 0 and not np.any(gradient)


def test_a_certain_network_keeps_the_others_exact():
  # p of the target rounds to 1 in float32; the published logarithm of 1 - p is -inf.
  s, t = draw(scale=3.0)
  for z in (s, t):
    z[np.arange(6), LABELS] += 60.0
  (target, slope), (others, _) = parts(s, t, temperature=1.0)
  plain = parts(*draw(scale=3.0), temperature=1.0)[1][0]
  np.testing.assert_allclose(others, plain, rtol=1e-4)
  assert 0 <= target < 1e-20 and np.isfinite(slope).all()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"labels": [0.0, 1.0]}, r"labels \(2,\) of float32 do not belong to logits \(2, 3\)"),
    ({"labels": [0, 1, 2]}, r"labels \(3,\) of int32 do not belong to logits \(2, 3\)"),
    ({"temperature": 0.0}, "temperature is 0.0: it must be a finite number"),
    ({"weights": jnp.ones(3)}, r"weights \(3,\) do not belong to logits \(2, 3\)"),
  ],
)
def test_error_for_wrong_arguments_names_them(options, message):
  z = Output(jnp.ones((2, 3)))
  arguments = {"labels": [0, 1], **options}
  with pytest.raises(ConfigError, match=message):
    decoupled_distillation(z, z, **arguments)
