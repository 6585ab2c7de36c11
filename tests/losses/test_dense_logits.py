"""Logits with any leading axes: (B, T, C) and (B, H, W, C) equal their flattened rows."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.errors import ConfigError
from jaxkd.evaluate.metrics import score
from jaxkd.losses._numerics import mean_log_probabilities
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

SHAPES = pytest.mark.parametrize("leading", [(2, 3), (2, 2, 3)], ids=str)
KEY = jax.random.key(0)


def labelled(name, **options):
  def call(s, t, **where):
    labels = jax.lax.stop_gradient(jnp.argmax(t, axis=-1))
    if name == "cross_entropy":
      return losses.cross_entropy(s, labels, **options, **where)
    if name == "confidence_weighted_cross_entropy":
      return losses.confidence_weighted_cross_entropy(s, t, labels, **where)
    return getattr(losses, name)(Output(s), Output(t), labels, **options, **where).total

  return call


CASES = {
  "soft_target_kl": losses.soft_target_kl,
  "peer_kl": functools.partial(losses.peer_kl, target_smoothing=0.01),
  "peer_kl, ratio": functools.partial(losses.peer_kl, ratio_smoothing=0.01),
  "soft_cross_entropy": losses.soft_cross_entropy,
  "permuted_soft_target_kl": lambda s, t, **o: losses.permuted_soft_target_kl(
    s[..., :2], t[..., :2], KEY, **o
  ),
  "cross_entropy": labelled("cross_entropy", label_smoothing=0.1),
  "cross_entropy, probabilities": lambda s, t, **o: losses.cross_entropy(s, jax.nn.softmax(t), **o),
  "knowledge_distillation": labelled("knowledge_distillation", hard_weight=0.5),
  "confidence_weighted_cross_entropy": labelled("confidence_weighted_cross_entropy"),
  "confidence_weighted_by_teacher_max": labelled("confidence_weighted_by_teacher_max"),
  "mutual": lambda s, t, **o: losses.mutual(Output(s), [Output(t), Output(-t)], **o).total,
  "native_ensemble": lambda s, t, **o: (
    losses.native_ensemble([Output(s), Output(-s)], Output(t), **o).total
  ),
  "multi_exit": lambda s, t, **o: (
    losses.multi_exit([Output(s), Output(-s), Output(t)], teachers="ensemble", **o).total
  ),
  "be_your_own_teacher": lambda s, t, **o: (
    losses.be_your_own_teacher([Output(s), Output(t)], feature_weight=0, **o).total
  ),
  "mean_confidence": lambda s, t, **o: losses.mean_confidence(s, **o),
  "adapted_temperature": lambda s, t, **o: losses.adapted_temperature(1.0, s, confidence=0.4, **o),
  "mean_log_probabilities": lambda s, t: jnp.mean(mean_log_probabilities([s, t])[..., 0]),
}
each_case = pytest.mark.parametrize("call", CASES.values(), ids=CASES)


def draw(leading):
  return np.random.default_rng(0).normal(size=(2, *leading, 4)).astype("float32")


@each_case
@pytest.mark.parametrize(
  "leading", [(2, 3), pytest.param((2, 2, 3), marks=pytest.mark.long)], ids=str
)
def test_dense_logits_equal_their_flattened_rows(call, leading):
  s, t = draw(leading)
  value, gradient = jit(jax.value_and_grad(call))(s, t)
  flat, slope = jit(jax.value_and_grad(call))(s.reshape(-1, 4), t.reshape(-1, 4))
  np.testing.assert_allclose(value, flat, rtol=1e-5)
  np.testing.assert_allclose(gradient.reshape(-1, 4), slope, rtol=1e-5, atol=1e-7)


@each_case
@SHAPES
@pytest.mark.long
def test_where_may_have_any_number_of_leading_axes(call, leading):
  if call is CASES["mean_log_probabilities"]:
    return
  s, t = draw(leading)
  where = np.random.default_rng(1).random(leading) < 0.5
  for axes in range(1, len(leading) + 1):
    some = where[(slice(None),) * axes + (0,) * (len(leading) - axes)]
    some[0] = True
    spread = np.broadcast_to(some.reshape(some.shape + (1,) * (len(leading) - axes)), leading)
    value = jit(functools.partial(call, where=some))(s, t)
    np.testing.assert_allclose(value, jit(call)(s[spread], t[spread]), rtol=1e-5)


@pytest.mark.long
@SHAPES
def test_weights_may_have_any_number_of_leading_axes(leading):
  z, t = draw(leading)
  labels = t.argmax(-1)
  weights = np.random.default_rng(1).random(leading).astype("float32")
  for axes in range(1, len(leading) + 1):
    some = weights[(slice(None),) * axes + (0,) * (len(leading) - axes)]
    spread = np.broadcast_to(some.reshape(some.shape + (1,) * (len(leading) - axes)), leading)
    rows = (labels.ravel(), spread.ravel())
    found = losses.cross_entropy(z, labels, some)
    np.testing.assert_allclose(found, losses.cross_entropy(z.reshape(-1, 4), *rows), rtol=1e-5)
    found = losses.confidence_weighted_cross_entropy(z, t, labels, some)
    flat = losses.confidence_weighted_cross_entropy(z.reshape(-1, 4), t.reshape(-1, 4), *rows)
    np.testing.assert_allclose(found, flat, rtol=1e-5)
    # score() covers every position.
    expected = score(z.reshape(-1, 4), *rows)
    for classes in (labels, np.eye(4, dtype="float32")[labels]):
      for name, pair in score(z, classes, some).items():
        np.testing.assert_allclose(pair, expected[name], rtol=1e-5)
    for name, pair in score(z, labels, np.ones(2, "float32"), where=some > 0.5).items():
      counted = score(z.reshape(-1, 4), labels.ravel(), (spread.ravel() > 0.5).astype("float32"))
      np.testing.assert_allclose(pair, counted[name], rtol=1e-5)


@SHAPES
def test_permutation_of_dense_logits_keeps_the_largest_at_every_position(leading):
  z = draw(leading)[0]
  shuffled = jit(losses.permute_wrong_classes)(z, KEY)
  assert shuffled.shape == z.shape
  np.testing.assert_array_equal(shuffled.argmax(-1), z.argmax(-1))
  np.testing.assert_array_equal(np.sort(shuffled, -1), np.sort(z, -1))
  flat = losses.permute_wrong_classes(z.reshape(-1, 4), KEY)
  np.testing.assert_array_equal(shuffled.reshape(-1, 4), flat)


@SHAPES
def test_gate_may_have_any_number_of_leading_axes(leading):
  branches = [Output(z) for z in draw(leading)]
  gate = np.random.default_rng(1).random((*leading, 2)).astype("float32")
  for axes in range(1, len(leading) + 1):
    some = gate[(slice(None),) * axes + (0,) * (len(leading) - axes)]
    spread = np.broadcast_to(
      some.reshape(*some.shape[:-1], *[1] * (len(leading) - axes), 2), gate.shape
    )
    expected = sum(spread[..., k, None] * z.logits for k, z in enumerate(branches))
    np.testing.assert_allclose(losses.gated_logits(branches, some), expected, rtol=1e-6)
  with pytest.raises(
    ConfigError, match=r"gate \(3, 2\) does not belong to 2 branches.*\(2, 2\) or"
  ):
    losses.gated_logits(branches, np.ones((3, 2)))


def test_error_for_arguments_that_do_not_fit_dense_logits_names_both_shapes():
  z = jnp.zeros((2, 3, 4))
  with pytest.raises(
    ConfigError, match=r"weights \(3,\) do not belong to logits \(2, 3, 4\).*\(2,\)"
  ):
    losses.cross_entropy(z, jnp.zeros((2, 3), int), jnp.ones(3))
  with pytest.raises(ConfigError, match=r"labels \(2,\) do not belong to logits \(2, 3, 4\)"):
    score(z, jnp.zeros(2, int), jnp.ones(2))
  for options in ({"weights": jnp.ones(3)}, {"weights": jnp.ones(2), "where": jnp.ones((3, 2))}):
    with pytest.raises(ConfigError, match=r"\(3.*do not belong to logits \(2, 3, 4\)"):
      score(z, jnp.zeros((2, 3), int), **options)
