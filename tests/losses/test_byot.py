"""Be your own teacher: definitions and published variants."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.losses import (
  be_your_own_teacher,
  euclidean_distance,
  masked_sum_of_squares,
)
from jaxkd.types import Output, Terms

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(4, 4, 3)).astype("float32")
HINTS = RNG.normal(size=(4, 4, 2, 2, 5)).astype("float32")
EXITS = [Output(z, {"hint": f}) for z, f in zip(LOGITS, HINTS, strict=True)]

KERNELS = pytest.mark.parametrize("kernel", [masked_sum_of_squares, euclidean_distance])


def soft(logits):
  """Cross-entropy with the deepest exit at T = 3, by definition."""
  p, q = (np.exp(z.astype("float64") / 3) for z in (LOGITS[-1], logits))
  return -(p / p.sum(1, keepdims=True) * np.log(q / q.sum(1, keepdims=True))).sum(1).mean()


def squares(s, t):
  return (np.square(s - t) * ((s > 0) | (t > 0))).sum(dtype="float64")


def distance(s, t):
  return np.linalg.norm((s - t).ravel())


def test_defaults_equal_the_earlier_reimplementation():
  terms = be_your_own_teacher(EXITS)
  np.testing.assert_allclose(terms.logit, 0.1 * 9 * sum(map(soft, LOGITS[:-1])), rtol=1e-5)
  feature = sum(squares(f, HINTS[-1]) for f in HINTS[:-1])
  np.testing.assert_allclose(terms.feature, 1e-6 * feature, rtol=1e-5)


def test_authors_later_code_omits_the_hint_before_the_deepest_exit():
  exits = [*EXITS[:2], Output(LOGITS[2]), EXITS[3]]
  terms = be_your_own_teacher(
    exits, squared_temperature=False, soft_weight=0.3, feature="distance", feature_weight=0.03
  )
  np.testing.assert_allclose(terms.logit, 0.3 * sum(map(soft, LOGITS[:-1])), rtol=1e-5)
  feature = sum(distance(f, HINTS[-1]) for f in HINTS[:2])
  np.testing.assert_allclose(terms.feature, 0.03 * feature, rtol=1e-5)


def test_feature_exits_selects_the_hints_to_compare():
  terms = be_your_own_teacher(EXITS, feature_weight=1.0, feature_exits=[1])
  np.testing.assert_allclose(terms.feature, squares(HINTS[1], HINTS[-1]), rtol=1e-5)
  assert be_your_own_teacher(EXITS, feature_exits=[]).feature == 0
  bare = [Output(z) for z in LOGITS]
  assert be_your_own_teacher(bare, feature_weight=0).feature == 0
  with pytest.raises(ConfigError, match="deepest exit's Output has no features"):
    be_your_own_teacher(bare)


def test_elements_inactive_on_both_sides_add_nothing():
  s, t = np.float32([[-1.0, -1.0, 2.0, -1.0]]), np.float32([[-3.0, 2.0, -1.0, 0.0]])
  value, gradient = jit(jax.value_and_grad(masked_sum_of_squares))(s, t)
  assert value == 9 + 9
  np.testing.assert_array_equal(gradient, [[0, -6, 6, 0]])


@KERNELS
def test_features_equal_to_the_deepest_exits_have_zero_gradient(kernel):
  value, gradient = jit(jax.value_and_grad(kernel))(HINTS[0], HINTS[0])
  assert value == 0
  assert not np.any(gradient)


def test_exits_that_agree_have_zero_gradient():
  def loss(logits, hints):
    agreed = [Output(logits, {"hint": hints})] * 3
    return be_your_own_teacher(agreed, feature_weight=1.0, feature="distance").total

  gradients = jit(jax.grad(loss, (0, 1)))(LOGITS[0], HINTS[0])
  assert not any(np.any(g) for g in gradients)


@KERNELS
def test_hints_of_several_devices_are_compared_over_the_global_batch(kernel):
  s, t = HINTS[:2]

  def shard(s, t):
    return jax.value_and_grad(functools.partial(kernel, axis_name="batch"))(s, t)

  values, gradients = jit(jax.vmap(shard, axis_name="batch"))(s[:, None], t[:, None])
  value, gradient = jit(jax.value_and_grad(kernel))(s, t)
  np.testing.assert_allclose(values.mean(), value, rtol=1e-6)
  np.testing.assert_allclose(gradients[:, 0] / 4, gradient, rtol=1e-5, atol=1e-7)


def test_single_exit_gives_zero_terms():
  assert be_your_own_teacher(EXITS[:1]) == Terms()


def test_error_for_arguments_that_do_not_fit_names_them():
  with pytest.raises(ConfigError, match=r"exit 1, stage 'hint': .*\(4, 2, 2, 5\)"):
    wrong = Output(LOGITS[1], {"hint": HINTS[1][..., :3]})
    be_your_own_teacher([EXITS[0], wrong, EXITS[2]])
  with pytest.raises(ConfigError, match=r"exit 0: student \(4, 2\) and the deepest exit \(4, 3\)"):
    be_your_own_teacher([Output(LOGITS[0][:, :2]), EXITS[1]])
  with pytest.raises(ConfigError, match=r"feature_exits has 3: the exits before .* are 0 to 2"):
    be_your_own_teacher(EXITS, feature_exits=[0, 3])
  with pytest.raises(ConfigError, match="unknown feature 'squares'"):
    be_your_own_teacher(EXITS, feature="squares")
  with pytest.raises(ConfigError, match="unknown exit 0 stage 'hnt'"):
    be_your_own_teacher([EXITS[0], Output(LOGITS[1], {"hnt": HINTS[1]})], feature_stage="hnt")
