"""Invalid labels that count give NaN, not a silent 0."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.evaluate.metrics import score
from jaxkd.losses import (
  confidence_weighted_by_teacher_max,
  confidence_weighted_cross_entropy,
  cross_entropy,
  knowledge_distillation,
)
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 4)).astype("float32")
TEACHER = RNG.normal(size=(3, 4)).astype("float32")


def of_outputs(loss):
  return lambda z, *labels, **options: loss(Output(z), Output(TEACHER), *labels, **options).total


LOSSES = {
  "cross_entropy": cross_entropy,
  "smoothed": functools.partial(cross_entropy, label_smoothing=0.1),
  "confidence_weighted_cross_entropy": lambda z, *labels, **options: (
    confidence_weighted_cross_entropy(z, TEACHER, *labels, **options)
  ),
  "confidence_weighted_by_teacher_max": of_outputs(confidence_weighted_by_teacher_max),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
compiled = {loss: jit(jax.value_and_grad(loss)) for loss in LOSSES.values()}

WRONG = {
  "number of classes": np.int32([0, 4, 1]),
  "negative": np.int32([0, -1, 1]),
  "far": np.int32([0, 2**31 - 1, 1]),
  "several": np.float32([[1, 0, 0, 0], [1, 1, 0, 1], [0, 1, 0, 0]]),
  "none": np.float32([[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]),
  "below 0": np.float32([[1, 0, 0, 0], [1.5, -0.5, 0, 0], [0, 1, 0, 0]]),
  "several, integers": np.int32([[1, 0, 0, 0], [1, 1, 0, 1], [0, 1, 0, 0]]),
  "NaN": np.float32([[1, 0, 0, 0], [np.nan, 1, 0, 0], [0, 1, 0, 0]]),
}
each_wrong = pytest.mark.parametrize("labels", WRONG.values(), ids=WRONG)


@each_loss
@each_wrong
def test_invalid_label_that_counts_gives_nan(loss, labels):
  value, gradient = compiled[loss](LOGITS, labels)
  assert np.isnan(value) and np.isnan(gradient[1]).all()
  assert np.isnan(loss(LOGITS, labels))
  weights = np.float32([1, 1e-3, 0])
  assert np.isnan(compiled[loss](LOGITS, labels, weights)[0])


@each_loss
@each_wrong
def test_label_that_does_not_count_may_be_invalid(loss, labels):
  weights = np.float32([1, 0, 2])
  z = LOGITS.copy()
  # Its logits may be invalid, too.
  z[1] = np.nan
  value, gradient = compiled[loss](z, labels, weights)
  right = labels.copy()
  right[1] = right[0]
  np.testing.assert_allclose(value, loss(LOGITS, right, weights), rtol=1e-6)
  assert np.isfinite(gradient).all() and not np.any(gradient[1])
  masked = loss(z, labels, where=weights)
  np.testing.assert_allclose(masked, loss(LOGITS, right, np.float32([1, 0, 1])), rtol=1e-6)


def test_invalid_labels_of_the_issue_give_nan():
  z = jnp.array([[1.0, 2.0, 3.0, 4.0]])
  assert np.isnan(cross_entropy(z, jnp.array([4])))
  assert np.isnan(cross_entropy(z, jnp.array([[1.0, 0.0, 1.0, 1.0]])))
  assert np.isnan(cross_entropy(z, jnp.zeros((1, 4))))


def test_knowledge_distillation_gives_nan_for_an_invalid_label():
  z = Output(LOGITS)
  assert np.isnan(knowledge_distillation(z, z, WRONG["negative"], hard_weight=0.1).total)


def test_labels_of_a_narrow_dtype_work_for_more_classes_than_its_range():
  z = RNG.normal(size=(2, 300)).astype("float32")
  narrow = cross_entropy(z, np.uint8([200, 3]))
  np.testing.assert_array_equal(narrow, cross_entropy(z, np.int32([200, 3])))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@given(seed=st.integers(0, 2**31), sharpness=st.sampled_from([0.1, 1.0, 10.0]))
def test_rounded_probabilities_are_valid_labels(dtype, seed, sharpness):
  z = sharpness * np.random.default_rng(seed).normal(size=(3, 4)).astype("float32")
  p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
  value, gradient = compiled[cross_entropy](LOGITS, jnp.asarray(p, dtype))
  assert np.isfinite(value) and np.isfinite(gradient).all()
  for scale in (0.9, 1.1):
    assert np.isnan(compiled[cross_entropy](LOGITS, jnp.asarray(scale * p, dtype))[0])


def test_mixed_labels_are_valid_probabilities():
  p = 0.3 * np.eye(4, dtype="float32")[[0, 1, 2]] + 0.7 * np.eye(4, dtype="float32")[[3, 1, 0]]
  log_p = np.asarray(jax.nn.log_softmax(LOGITS), "float64")
  np.testing.assert_allclose(cross_entropy(LOGITS, p), -(p * log_p).sum(1).mean(), rtol=1e-6)


def test_hard_labels_need_no_extra_array_of_the_size_of_the_logits():
  def largest(loss):
    step = jax.jit(jax.value_and_grad(loss)).lower(jnp.ones((64, 512)), jnp.ones(64, jnp.int32))
    return step.compile().memory_analysis().temp_size_in_bytes

  def plain(z, labels):
    targets = jax.nn.one_hot(labels, 512)
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(z), axis=-1))

  assert largest(cross_entropy) <= largest(plain) + 64 * 16


@each_wrong
def test_score_of_an_invalid_label_is_nan(labels):
  found = score(LOGITS, labels, np.ones(3, "float32"))
  assert np.isnan(found["accuracy"][0]) and np.isnan(found["cross_entropy"][0])
  assert found["accuracy"][1] == 3
  weights = np.float32([1, 0, 1])
  out = {"weights": score(LOGITS, labels, weights)}
  out["where"] = score(LOGITS, labels, np.ones(3, "float32"), where=weights > 0)
  right = labels.copy()
  right[1] = right[0]
  for found in out.values():
    np.testing.assert_array_equal(
      jax.tree.leaves(found), jax.tree.leaves(score(LOGITS, right, weights))
    )
