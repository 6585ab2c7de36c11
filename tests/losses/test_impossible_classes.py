"""Logits of -inf are impossible classes: 0 log 0 = 0, on either side."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxkd import losses
from jaxkd.evaluate.metrics import score
from jaxkd.losses._numerics import (
  entropy,
  log_probabilities,
  mean_log_probabilities,
  relative_entropy,
)
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

LABELS = np.array([0, 1, 3], np.int32)
FINITE = np.random.default_rng(1).normal(size=(3, 4)).astype("float32")
# Classes that are impossible for all networks, for three examples with these labels.
SHARED = np.array([[0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], bool)


class Case(NamedTuple):
  """A function of a student's and a teacher's logits, and the temperature.

  Attributes:
    infinite: a class that is impossible for the student alone gives inf.
    teacher_learns: a class that is impossible for the teacher alone gives inf, too.
  """

  call: Callable
  infinite: bool = True
  teacher_learns: bool = False


def kernel(name, infinite=True, **options):
  return Case(lambda s, t, T: getattr(losses, name)(s, t, temperature=T, **options), infinite)


def of_exits(name, teacher_learns=False, **options):
  def call(s, t, T):
    exits = [Output(s), Output(2.0 * s), Output(t)]
    return getattr(losses, name)(exits, temperature=T, **options).total

  return Case(call, True, teacher_learns)


def distilled(s, t, T):
  return losses.knowledge_distillation(
    Output(s), Output(t), LABELS, temperature=T, hard_weight=0.5
  ).total


def of_peers(s, t, T):
  peers = [Output(t), Output(2.0 * t)]
  return losses.mutual(Output(s), peers, target="ensemble", temperature=T, detached=False).total


def of_branches(s, t, T):
  branches = [Output(s), Output(2.0 * s)]
  return losses.native_ensemble(
    branches, Output(t), temperature=T, target_smoothing=0.0, detached=False
  ).total


def gated(s, t, T):
  # The student's weight is 0, so its logits of -inf have no effect.
  gate = jnp.array([[0.0, 0.5]] * 3) * T
  return losses.cross_entropy(losses.gated_logits([Output(s), Output(t)], gate), LABELS)


CASES = {
  "soft_target_kl": kernel("soft_target_kl"),
  "knowledge_distillation": Case(distilled),
  "peer_kl": kernel("peer_kl", detached=False),
  "peer_kl, ratio": kernel("peer_kl", False, detached=False, ratio_smoothing=1e-8),
  # Finite student: a smoothed target is positive everywhere, a permuted one has zeros anywhere.
  "peer_kl, target": Case(
    lambda s, t, T: losses.peer_kl(FINITE, t, temperature=T, detached=False, target_smoothing=1e-3),
    False,
  ),
  "permuted_soft_target_kl": Case(
    lambda s, t, T: losses.permuted_soft_target_kl(FINITE, t, jax.random.key(0), temperature=T),
    False,
  ),
  "mutual": Case(of_peers),
  "native_ensemble": Case(of_branches),
  "soft_cross_entropy": kernel("soft_cross_entropy", detached=False),
  "multi_exit, last": of_exits("multi_exit", detached=False),
  "multi_exit, later": of_exits("multi_exit", teachers="later", divergence="kl"),
  "multi_exit, ensemble": of_exits("multi_exit", True, teachers="ensemble", detached=False),
  "be_your_own_teacher": of_exits("be_your_own_teacher", feature_weight=0),
  "cross_entropy": Case(lambda s, t, T: losses.cross_entropy(s, LABELS), False),
  "cross_entropy, smoothed": Case(
    lambda s, t, T: losses.cross_entropy(FINITE, LABELS, label_smoothing=0.1), False
  ),
  "cross_entropy, probabilities": Case(
    lambda s, t, T: losses.cross_entropy(
      s, jax.nn.softmax(jax.lax.stop_gradient(t.astype(jnp.promote_types(t.dtype, "float32"))))
    )
  ),
  "confidence_weighted_cross_entropy": Case(
    lambda s, t, T: losses.confidence_weighted_cross_entropy(s, t, LABELS), False
  ),
  "gated_logits": Case(gated, False),
  "mean_confidence": Case(lambda s, t, T: losses.mean_confidence(s, temperature=T), False),
  "mean_log_probabilities": Case(
    lambda s, t, T: losses.cross_entropy(mean_log_probabilities([s, t]), LABELS), False
  ),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def draw(dtype="float32", impossible=SHARED):
  pair = np.random.default_rng(0).normal(size=(2, 3, 4))
  return [jnp.asarray(np.where(impossible, -np.inf, x), dtype) for x in pair]


@functools.cache
def compiled(call):
  return jit(jax.value_and_grad(call, (0, 1, 2)))


@pytest.mark.long
@each_case
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_classes_impossible_for_all_add_nothing_and_have_zero_gradient(case, dtype):
  with jax.enable_x64(True):
    # Reference: a finite logit of -1e5 has probability 0, too.
    far = [jnp.maximum(x.astype("float64"), -1e5) for x in draw(dtype)]
    expected, (*exact, _) = jax.tree.map(np.asarray, compiled(case.call)(*far, 2.0))
  with jax.enable_x64(dtype == "float64"):
    s, t = draw(dtype)
    value, (*slopes, by_temperature) = compiled(case.call)(s, t, 2.0)
    eager = case.call(s, t, 2.0)
  np.testing.assert_allclose([value, eager], expected, rtol=1e-5, atol=1e-6)
  assert np.isfinite(by_temperature)
  rounding = {"rtol": 0.02, "atol": 1e-3} if dtype == "bfloat16" else {"rtol": 1e-4, "atol": 1e-6}
  for slope, wanted in zip(slopes, exact, strict=True):
    slope = np.asarray(slope.astype("float32"))
    np.testing.assert_allclose(slope, wanted, **rounding)
    assert not np.any(slope[SHARED])


@each_case
@pytest.mark.parametrize(
  "dtype",
  ["float32", *(pytest.param(x, marks=pytest.mark.long) for x in ("bfloat16", "float64"))],
)
def test_class_impossible_for_the_student_alone_gives_inf_and_not_nan(case, dtype):
  with jax.enable_x64(dtype == "float64"):
    s, t = draw(dtype, np.zeros_like(SHARED))
    s = s.at[0, 2].set(-jnp.inf)
    value, (slope, *_) = compiled(case.call)(s, t, 2.0)
    eager = case.call(s, t, 2.0)
  for found in map(float, (value, eager)):
    assert found == np.inf if case.infinite else np.isfinite(found)
  slope = np.asarray(slope.astype("float32"))
  assert np.isfinite(slope).all() and slope[0, 2] == 0


@each_case
def test_class_impossible_for_the_teacher_alone_has_probability_zero(case):
  s, t = draw(impossible=np.zeros_like(SHARED))
  expected, (exact, *_) = compiled(case.call)(s, t.at[0, 2].set(-1e5), 2.0)
  value, (*slopes, by_temperature) = compiled(case.call)(s, t.at[0, 2].set(-jnp.inf), 2.0)
  assert np.isfinite(slopes).all() and slopes[1][0, 2] == 0
  if case.teacher_learns:
    assert value == np.inf
  else:
    assert np.isfinite(by_temperature)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slopes[0], exact, rtol=1e-4, atol=1e-6)


def test_label_of_an_impossible_class_gives_inf():
  z = jnp.array([[0.0, -jnp.inf], [1.0, 2.0]])
  for labels in (jnp.array([1, 0]), jnp.array([[0.5, 0.5], [1.0, 0.0]])):
    for options in ({}, {"label_smoothing": 0.1}):
      value, slope = jax.value_and_grad(losses.cross_entropy)(z, labels, **options)
      assert value == np.inf and np.isfinite(slope).all() and slope[0, 1] == 0
    assert np.isfinite(losses.cross_entropy(z, labels, jnp.array([0.0, 1.0])))
  # Smoothing gives every class a part of the label.
  assert losses.cross_entropy(z, jnp.array([0, 0]), label_smoothing=0.1) == np.inf
  assert np.isfinite(losses.cross_entropy(z, jnp.array([0, 0])))


def test_probability_that_rounds_to_zero_is_not_an_impossible_class():
  # exp(-200) is 0 in float32, but its class is possible.
  s, t = jnp.array([[0.0, -jnp.inf]]), jnp.array([[0.0, -200.0]])
  assert losses.soft_target_kl(s, t, temperature=1.0) == np.inf


WITH_IMPOSSIBLE = hnp.arrays(
  np.float32, (2, 5), elements=st.one_of(st.floats(-50, 50, width=32), st.just(-np.inf))
).map(lambda z: np.where(np.arange(5) == 0, np.maximum(z, -50), z))
divergence = jit(lambda s, t: relative_entropy(*map(log_probabilities, (s, t))))


@given(WITH_IMPOSSIBLE, WITH_IMPOSSIBLE)
def test_divergence_is_inf_for_impossible_targets_and_else_finite_and_nonnegative(s, t):
  value = np.asarray(divergence(s, t))
  infinite = ((s == -np.inf) & (t > -np.inf)).any(axis=1)
  assert (value[infinite] == np.inf).all()
  assert (value[~infinite] >= 0).all() and np.isfinite(value[~infinite]).all()
  assert (divergence(s, s) == 0).all()


def test_entropy_of_a_certain_class_is_zero():
  certain = jnp.array([0.0, -jnp.inf])
  value, slope = jax.value_and_grad(entropy)(certain)
  assert value == 0 and np.isfinite(slope).all()


def test_ensemble_gives_minus_inf_only_where_all_members_do():
  one, other = jnp.array([[0.0, -jnp.inf, -jnp.inf]]), jnp.array([[0.0, 0.0, -jnp.inf]])
  joined, slope = jax.value_and_grad(lambda z: jnp.exp(mean_log_probabilities([z, other])).sum())(
    one
  )
  np.testing.assert_allclose(joined, 1.0, rtol=1e-6)
  assert np.isfinite(slope).all()
  p = jnp.exp(mean_log_probabilities([one, other]))
  np.testing.assert_allclose(p, [[0.75, 0.25, 0.0]], rtol=1e-6)


def test_gate_ignores_minus_inf_of_a_branch_of_weight_zero():
  branches = [Output(jnp.array([[1.0, -jnp.inf]])), Output(jnp.array([[2.0, 4.0]]))]
  np.testing.assert_array_equal(
    losses.gated_logits(branches, jnp.array([[0.0, 1.0]])), [[2.0, 4.0]]
  )
  shared = losses.gated_logits(branches, jnp.array([[0.5, 0.5]]))
  np.testing.assert_array_equal(shared, [[1.5, -np.inf]])


def test_score_of_impossible_classes():
  z = jnp.array([[0.0, 0.0, -jnp.inf], [0.0, -jnp.inf, -jnp.inf]])
  found = score(z, jnp.array([1, 0]), jnp.ones(2))
  np.testing.assert_allclose(found["cross_entropy"][0], np.log(2.0), rtol=1e-6)
  assert score(z, jnp.array([2, 0]), jnp.ones(2))["cross_entropy"][0] == np.inf
  assert np.isfinite(score(z, jnp.array([2, 0]), jnp.array([0.0, 1.0]))["cross_entropy"][0])
