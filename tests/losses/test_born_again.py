"""Born-again controls CWTM and DKPP: weights by confidence, permuted targets."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.losses import (
  confidence_weighted_by_teacher_max,
  confidence_weighted_cross_entropy,
  cross_entropy,
  dark_knowledge_permuted,
  permute_wrong_classes,
  permuted_soft_target_kl,
  soft_target_kl,
)
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, 8, 4)).astype("float32")
LABELS = RNG.integers(0, 4, 8)
weighted = jit(jax.value_and_grad(confidence_weighted_cross_entropy, (0, 1)))
permuted = jit(permute_wrong_classes)


def test_examples_are_weighted_by_the_teachers_largest_probability():
  p = np.exp(TEACHER.astype("float64"))
  confidence = (p / p.sum(1, keepdims=True)).max(1)
  log_p = np.asarray(jax.nn.log_softmax(STUDENT), np.float64)
  expected = -(confidence / confidence.sum() * log_p[np.arange(8), LABELS]).sum()
  value, (own, theirs) = weighted(STUDENT, TEACHER, LABELS)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  assert np.any(own)
  assert not np.any(theirs)


def test_equal_confidence_gives_the_plain_cross_entropy():
  # Rotated logits: other classes, equal confidence.
  even = np.stack([np.roll(TEACHER[0], shift) for shift in range(8)])
  for weights in (None, np.float32([1, 0, 1, 1, 0, 2, 1, 1])):
    value = confidence_weighted_cross_entropy(STUDENT, even, LABELS, weights)
    np.testing.assert_allclose(value, cross_entropy(STUDENT, LABELS, weights), rtol=1e-6)


def test_masked_examples_add_nothing_to_value_or_normalisation():
  mask = np.float32([1, 1, 1, 0, 0, 1, 1, 0])
  there = mask > 0
  unlabelled = np.where(there, LABELS, -1)
  value, (gradient, _) = weighted(STUDENT, TEACHER, unlabelled, mask)
  expected = confidence_weighted_cross_entropy(STUDENT[there], TEACHER[there], LABELS[there])
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  assert not np.any(gradient[~there])
  value, (gradient, _) = weighted(STUDENT, TEACHER, LABELS, np.zeros(8, "float32"))
  assert value == 0 and not np.any(gradient)


def test_confidence_is_normalised_over_the_global_batch():
  mask = np.float32([1, 0, 1, 1, 0, 0, 1, 1])

  def shard(*arrays):
    function = functools.partial(confidence_weighted_cross_entropy, axis_name="batch")
    return jax.value_and_grad(function)(*arrays)

  split = [x.reshape(4, 2, *x.shape[1:]) for x in (STUDENT, TEACHER, LABELS, mask)]
  values, gradients = jit(jax.vmap(shard, axis_name="batch"))(*split)
  value, (gradient, _) = weighted(STUDENT, TEACHER, LABELS, mask)
  np.testing.assert_allclose(values.mean(), value, rtol=1e-6)
  np.testing.assert_allclose(gradients.reshape(8, 4) / 4, gradient, rtol=1e-5, atol=1e-8)


def test_permutation_keeps_the_largest_logit_and_the_set_of_values():
  for seed in range(5):
    shuffled = permuted(TEACHER, jax.random.key(seed))
    np.testing.assert_array_equal(shuffled.argmax(1), TEACHER.argmax(1))
    np.testing.assert_array_equal(shuffled.max(1), TEACHER.max(1))
    np.testing.assert_array_equal(np.sort(shuffled, 1), np.sort(TEACHER, 1))


def test_first_of_equal_largest_logits_stays():
  z = np.float32([[1.0, 5.0, 5.0, 2.0]])
  for seed in range(5):
    assert permuted(z, jax.random.key(seed))[0, 1] == 5


def test_every_example_gets_its_own_uniform_permutation():
  # Three wrong classes have six permutations.
  z = np.tile(np.float32([3.0, 0.0, 1.0, 2.0]), (600, 1))
  shuffled = np.asarray(permuted(z, jax.random.key(0)))
  found, counts = np.unique(shuffled, axis=0, return_counts=True)
  assert len(found) == 6
  # 100 each, within four standard deviations.
  assert (abs(counts - 100) < 37).all()


def test_permuted_targets_of_two_classes_equal_plain_targets():
  @jit
  def both(s, t):
    shuffled = permuted_soft_target_kl(s, t, jax.random.key(1), temperature=2.0)
    return shuffled, soft_target_kl(s, t, temperature=2.0)

  shuffled, plain = both(STUDENT[:, :2], TEACHER[:, :2])
  np.testing.assert_allclose(shuffled, plain, rtol=1e-6)
  assert plain > 0


@pytest.mark.parametrize("squared", [True, False])
def test_permuted_targets_depend_on_the_key_alone(squared):
  options = {"temperature": 3.0, "squared_temperature": squared}

  @jit
  def both(key):
    terms = dark_knowledge_permuted(Output(STUDENT), Output(TEACHER), key, **options)
    shuffled = permute_wrong_classes(TEACHER, key)
    return terms.logit, soft_target_kl(STUDENT, shuffled, **options)

  found = [both(jax.random.key(seed)) for seed in (0, 0, 1)]
  for value, expected in found:
    np.testing.assert_allclose(value, expected, rtol=1e-6)
  assert found[0][0] == found[1][0] != found[2][0]


def test_error_for_arguments_that_do_not_fit_names_them():
  with pytest.raises(ConfigError, match=r"weights \(3,\) do not belong to logits \(8, 4\)"):
    confidence_weighted_cross_entropy(STUDENT, TEACHER, LABELS, jnp.ones(3))
  with pytest.raises(ConfigError, match=r"student \(8, 4\) and teacher \(8, 3\) differ"):
    confidence_weighted_cross_entropy(STUDENT, TEACHER[:, :3], LABELS)
  with pytest.raises(ConfigError, match=r"logits \(8,\) are not \(B, C\)"):
    permute_wrong_classes(STUDENT[:, 0], jax.random.key(0))
  with pytest.raises(ConfigError, match="the teacher's Output has no logits"):
    confidence_weighted_by_teacher_max(Output(STUDENT), Output(), LABELS)
