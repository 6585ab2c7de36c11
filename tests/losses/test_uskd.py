"""USKD: the definition, ranks, mixed and one-hot labels, devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.errors import ConfigError
from jaxkd.losses import unified_self_distillation
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

LABELS = np.array([0, 3, 1, 1, 4, 2])
PARTS = ("target", "others", "weak")


def values(s, w, labels, weights=None, **options):
  terms = unified_self_distillation(
    Output(s),
    Output(w),
    labels,
    weights,
    target_weight=1.0,
    others_weight=1.0,
    weak_weight=1.0,
    **options,
  )
  return jnp.stack([terms[part].logit for part in PARTS])


@jit
def compute(s, w, labels=LABELS, weights=None):
  def loss(s, w):
    found = values(s, w, labels, weights)
    return found.sum(), found

  (_, found), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(s, w)
  return found, gradients


def draw(scale=1.0, seed=0):
  pair = np.random.default_rng(seed).normal(size=(2, 6, 5)) * scale
  return pair.astype("float32")


def softmax(z):
  p = np.exp(z.astype("float64") - z.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def test_the_terms_equal_the_definition():
  s, w = draw(2.0)
  p, q = softmax(s), softmax(w)
  own = p[np.arange(6), LABELS]
  target = -np.mean((own**2 + 1 - np.mean(own**2)) * np.log(own))
  others = 0.0
  for b, y in enumerate(LABELS):
    score = q[b] / (1 - q[b, y] + 1e-6) + p[b] / (1 - p[b, y] + 1e-6)
    rank = np.array([(score >= x).sum() for x in score])
    left = np.arange(5) != y
    zipf = 1 / rank[left]
    others -= (zipf / zipf.sum() * np.log(p[b, left] / p[b, left].sum())).sum() / 6
  smoothed = 0.9 * np.eye(5)[LABELS] + 0.1 / 5
  weak = -(smoothed * np.log(q)).sum(1).mean()
  np.testing.assert_allclose(compute(s, w)[0], [target, others, weak], rtol=1e-5)


def test_a_one_hot_label_as_probabilities_names_one_class():
  s, w = draw()
  one_hot = np.eye(5, dtype="float32")[LABELS]
  np.testing.assert_allclose(compute(s, w, one_hot)[0], compute(s, w)[0], rtol=1e-5)


def test_ranks_take_no_gradient_and_the_weak_logits_learn_from_labels_alone():
  s, w = draw()
  _, (_, slope) = compute(s, w)
  smoothed = 0.9 * np.eye(5)[LABELS] + 0.1 / 5
  np.testing.assert_allclose(slope, (softmax(w) - smoothed) / 6, atol=1e-6)


@given(st.integers(0, 2**16), st.sampled_from([1e-18, 1e-3, 1.0, 1e4, 1e8]))
def test_values_and_gradients_are_finite(seed, scale):
  found, gradients = compute(*draw(scale, seed))
  assert np.isfinite(found).all() and (np.asarray(found) >= 0).all()
  assert all(np.isfinite(g).all() for g in gradients)


def test_impossible_classes_have_no_rank():
  s, w = draw()
  left_out = np.array([4, 4, 4, 4, 3, 4])
  s[np.arange(6), left_out] = w[np.arange(6), left_out] = -np.inf
  found, gradients = compute(s, w)
  assert np.isfinite(found[:2]).all() and np.isfinite(gradients[0]).all()


def test_value_and_gradient_over_devices_equal_the_global_batch():
  s, w = draw()
  weights = np.array([1.0, 0.0, 0.5, 2.0, 0.0, 0.0], "float32")  # none on the last device

  def shard(s, w, y, m):
    return jax.value_and_grad(lambda s: values(s, w, y, m, axis_name="batch").sum())(s)

  split = [x.reshape(3, 2, *x.shape[1:]) for x in (s, w, LABELS, weights)]
  found, slopes = jit(jax.vmap(shard, axis_name="batch"))(*split)
  whole, (slope, _) = compute(s, w, LABELS, weights)
  np.testing.assert_allclose(found, [whole.sum()] * 3, rtol=1e-5)
  np.testing.assert_allclose(slopes.reshape(6, 5) / 3, slope, rtol=1e-4, atol=1e-6)


def test_error_for_wrong_arguments_names_them():
  z = Output(jnp.ones((2, 3)))
  with pytest.raises(ConfigError, match="ranked_by='logits': expected 'probabilities' or"):
    unified_self_distillation(z, z, [0, 1], ranked_by="logits")
  with pytest.raises(ConfigError, match=r"student \(2, 3\) and weak \(2, 4\) differ in shape"):
    unified_self_distillation(z, Output(jnp.ones((2, 4))), [0, 1])
