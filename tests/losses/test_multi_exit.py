"""Multi-exit distillation: definitions, gradients and the adapted temperature."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.losses import (
  adapted_temperature,
  mean_confidence,
  multi_exit,
  soft_cross_entropy,
  soft_target_kl,
)
from jaxkd.types import Output, Terms

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

EXITS = np.random.default_rng(0).normal(size=(3, 5, 4)).astype("float32")
TEACHERS = ("last", "ensemble", "later")
MULTIPLE = pytest.mark.parametrize("teachers", TEACHERS)


def softmax(z):
  p = np.exp(np.asarray(z, np.float64))
  return p / p.sum(-1, keepdims=True)


def exits_loss(exits, **options):
  """The multi-exit loss of an array (M, B, C)."""
  return multi_exit([Output(z) for z in exits], **options).total


@functools.cache
def compiled(teachers):
  """Values and gradients at T = 2 under every option but `teachers`."""
  ways = {
    "cross-entropy": {},
    "mean": {"average": "mean"},
    "kl": {"divergence": "kl"},
  }

  @jit
  def learn(exits):
    return {
      way: jax.value_and_grad(
        functools.partial(exits_loss, teachers=teachers, temperature=2.0, **options)
      )(exits)
      for way, options in ways.items()
    }

  return learn


def targets(teachers):
  """The probabilities of every exit's teachers at T = 2."""
  p = softmax(EXITS / 2)
  return {
    "last": [[p[2]], [p[2]], []],
    "later": [[p[1], p[2]], [p[2]], []],
    "ensemble": [[p.mean(0)]] * 3,
  }[teachers]


def divergences(teachers):
  """2^2 times the cross-entropy of every exit with each of its teachers, by definition."""
  return [
    [4 * -(t * np.log(own)).sum(-1).mean() for t in found]
    for own, found in zip(softmax(EXITS / 2), targets(teachers), strict=True)
  ]


def test_soft_cross_entropy_is_kl_plus_the_teachers_entropy():
  s, t = EXITS[:2]
  p = softmax(t / 2)
  entropy = -(p * np.log(p)).sum(-1).mean()
  value = soft_cross_entropy(s, t, temperature=2.0)
  expected = soft_target_kl(s, t, temperature=2.0) + 4 * entropy
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(value, -4 * (p * np.log(softmax(s / 2))).sum(-1).mean(), rtol=1e-5)
  plain = soft_cross_entropy(s, t, temperature=2.0, squared_temperature=False)
  np.testing.assert_allclose(4 * plain, value, rtol=1e-6)


def test_soft_cross_entropy_gives_a_gradient_to_a_teacher_that_is_not_detached():
  with jax.enable_x64(True):
    pair, moves = np.float64(EXITS[:2]), np.float64(EXITS[1:])

    @jit
    def slopes(pair):
      detached, attached = (
        jax.grad(lambda x, d=d: soft_cross_entropy(*x, detached=d))(pair) for d in (True, False)
      )
      moved = jnp.stack([pair + 1e-5 * moves, pair - 1e-5 * moves])
      up, down = jax.vmap(lambda x: soft_cross_entropy(*x))(moved)
      return detached, attached, (up - down) / 2e-5

    detached, attached, finite = slopes(pair)
  np.testing.assert_array_equal(detached, [attached[0], np.zeros_like(attached[1])])
  np.testing.assert_allclose(np.vdot(attached, moves), finite, rtol=1e-7)


@MULTIPLE
def test_sum_and_mean_over_exits_equal_the_definition(teachers):
  each, found = divergences(teachers), compiled(teachers)(EXITS)
  np.testing.assert_allclose(found["cross-entropy"][0], sum(map(sum, each)), rtol=1e-5)
  expected = sum(sum(found) / len(found) for found in each if found) / 3
  np.testing.assert_allclose(found["mean"][0], expected, rtol=1e-5)


@MULTIPLE
def test_kl_has_the_gradient_of_cross_entropy(teachers):
  found = compiled(teachers)(EXITS)
  np.testing.assert_allclose(found["kl"][1], found["cross-entropy"][1], rtol=1e-5, atol=1e-7)
  assert 0 < found["kl"][0] < found["cross-entropy"][0]


@MULTIPLE
def test_exits_that_agree_have_zero_gradient(teachers):
  agreed = np.broadcast_to(EXITS[:1], EXITS.shape)
  for way, (value, gradient) in compiled(teachers)(agreed).items():
    # The mean over exits is rounded.
    np.testing.assert_allclose(gradient, 0, atol=1e-6 if teachers == "ensemble" else 0)
    assert (abs(value) < 1e-6) == (way == "kl")


@MULTIPLE
def test_gradient_treats_teachers_as_constant(teachers):
  _, gradient = compiled(teachers)(EXITS)["cross-entropy"]
  # d/dz of T^2 * cross-entropy is T * (softmax(z / T) - target), a mean over the batch.
  p = softmax(EXITS / 2)
  expected = [
    sum((2 * (own - t) / len(own) for t in found), np.zeros_like(own))
    for own, found in zip(p, targets(teachers), strict=True)
  ]
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("teachers", ["later", "ensemble"])
def test_teachers_that_are_not_detached_get_a_gradient(teachers):
  with jax.enable_x64(True):
    exits, moves = EXITS.astype("float64"), EXITS[::-1, ::-1].astype("float64")

    @jit
    def slopes(exits):
      loss = functools.partial(exits_loss, teachers=teachers, detached=False)
      up, down = jax.vmap(loss)(jnp.stack([exits + 1e-5 * moves, exits - 1e-5 * moves]))
      return jnp.vdot(jax.grad(loss)(exits), moves), (up - down) / 2e-5

    attached, finite = slopes(exits)
  np.testing.assert_allclose(attached, finite, rtol=1e-6)


def test_single_exit_gives_zero_terms():
  assert multi_exit([Output(EXITS[0])], teachers="ensemble") == Terms()


def test_temperature_of_the_exits_may_be_traced():
  value = jit(lambda T: exits_loss(EXITS, temperature=T))(2.0)
  np.testing.assert_allclose(value, compiled("last")(EXITS)["cross-entropy"][0], rtol=1e-6)


def test_temperature_grows_only_above_the_confidence():
  # Two classes at logits 0 and log 3: confidence 3/4 at T = 1.
  logits = np.log(np.float32([[1.0, 3.0], [3.0, 1.0]]))
  adapt = jit(functools.partial(adapted_temperature, factor=1.25))
  confidence = mean_confidence(logits)
  np.testing.assert_allclose(confidence, 0.75, rtol=1e-6)
  assert adapt(1.0, logits, confidence=np.nextafter(confidence, np.float32(0))) == 1.25
  assert adapt(1.0, logits, confidence=confidence) == 1.0
  assert adapt(1.0, logits, confidence=0.9) == 1.0


def test_temperature_grows_monotonically_until_the_confidence_is_reached():
  logits = 8.0 * EXITS[2]

  def step(temperature, _):
    following = adapted_temperature(temperature, logits, confidence=0.6)
    return following, following

  _, path = jit(lambda: jax.lax.scan(step, jnp.float32(1), None, 60))()
  assert path[0] > 1 and (np.diff(path) >= 0).all()
  assert path[-1] == path[-2]
  settled = float(path[-1])
  assert mean_confidence(logits, temperature=settled) <= 0.6
  assert mean_confidence(logits, temperature=settled / 1.05) > 0.6


def test_temperature_takes_no_gradient_and_keeps_its_dtype():
  slopes = jit(jax.grad(adapted_temperature, (0, 1)))(1.0, EXITS[0])
  assert not any(np.any(g) for g in slopes)
  assert adapted_temperature(jnp.float32(1), EXITS[0].astype(jnp.bfloat16)).dtype == jnp.float32


def test_temperature_depends_on_the_global_batch():
  # One confident and one uncertain device: both use the mean.
  logits = np.stack([np.float32([[9.0, 0.0]]), np.zeros((1, 2), np.float32)])
  for confidence, expected in ((0.7, 1.05), (0.8, 1.0)):
    adapt = functools.partial(adapted_temperature, 1.0, confidence=confidence, axis_name="batch")
    found = jax.vmap(adapt, axis_name="batch")(logits)
    np.testing.assert_allclose(found, [expected, expected], rtol=1e-6)


def test_error_for_arguments_that_do_not_fit_names_them():
  with pytest.raises(ConfigError, match=r"exit 1: student \(5, 2\) and the deepest exit \(5, 4\)"):
    multi_exit([Output(EXITS[0]), Output(EXITS[1][:, :2]), Output(EXITS[2])])
  with pytest.raises(ConfigError, match="exit 0's Output has no logits"):
    multi_exit([Output(), Output(EXITS[0])])
  for name, value in (("teachers", "all"), ("average", "max"), ("divergence", "mse")):
    with pytest.raises(ConfigError, match=f"unknown {name} '{value}'"):
      exits_loss(EXITS, **{name: value})
  with pytest.raises(ConfigError, match="confidence is 2"):
    adapted_temperature(1.0, EXITS[0], confidence=2)
  with pytest.raises(ConfigError, match="factor is 0"):
    adapted_temperature(1.0, EXITS[0], factor=0)
