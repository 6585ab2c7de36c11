"""PKT: definition, invariances, zero vectors, and the global batch over devices with a mask."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.errors import ConfigError
from jaxkd.losses import cosine_similarity_kl, probabilistic_knowledge_transfer
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
compute = jit(jax.value_and_grad(cosine_similarity_kl))


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


def expected(student, teacher, eps=1e-7):
  """The loss by the paper's formula, with i = j and the mean over pairs as published code has."""

  def distributions(x):
    x = x.reshape(len(x), -1).astype("float64")
    x = x / (np.linalg.norm(x, axis=1, keepdims=True) + eps)
    kernel = (x @ x.T + 1) / 2
    return kernel / kernel.sum(1, keepdims=True)

  p, target = distributions(student), distributions(teacher)
  return (target * np.log((target + eps) / (p + eps))).mean()


# Below 1e-6, eps counts.
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-7, 1e8, 1e-18])
def test_loss_equals_the_definition(scale):
  s, t = np.float32(scale) * draw(6, 2, 2, 3), draw(6, 5, seed=1)
  value, gradient = compute(s, t)
  np.testing.assert_allclose(value, expected(s, t), rtol=1e-5)
  assert np.isfinite(gradient).all() and gradient.any()


@given(st.integers(0, 2**16), st.sampled_from(["student", "teacher"]), st.floats(0.0625, 16))
def test_distributions_ignore_rotation_and_scale_of_either_side(seed, side, scale):
  arrays = {"student": draw(6, 4, seed=seed), "teacher": draw(6, 4, seed=seed + 1)}
  rotation, _ = np.linalg.qr(draw(4, 4, seed=seed + 2))
  turned = arrays | {side: np.float32(scale) * (arrays[side] @ rotation)}
  value, _ = compute(arrays["student"], arrays["teacher"])
  np.testing.assert_allclose(
    compute(turned["student"], turned["teacher"])[0], value, rtol=1e-4, atol=1e-8
  )


def test_equal_features_have_the_loss_0_and_no_gradient():
  x = draw(6, 4)
  value, gradient = compute(x, x)
  assert value == 0 and np.abs(gradient).max() < 1e-7
  assert compute(x + 1, x)[0] > 1e-4


def test_zero_vector_is_equally_similar_to_all_and_takes_no_gradient():
  s, t = draw(6, 4), draw(6, 4, seed=1)
  s[2] = 0
  value, gradient = compute(s, t)
  np.testing.assert_allclose(value, expected(s, t), rtol=1e-5)
  assert not gradient[2].any() and gradient[3].any() and np.abs(gradient).max() < 1


def test_batch_of_one_has_the_loss_0():
  value, gradient = compute(draw(1, 4), draw(1, 3, seed=1))
  assert value == 0 and np.isfinite(gradient).all()


def test_masked_examples_are_in_no_distribution():
  s, t = draw(6, 4), draw(6, 3, seed=1)
  where = np.array([1, 1, 0, 1, 0, 1])
  value = jit(cosine_similarity_kl)(s, t, where=where)
  np.testing.assert_allclose(value, expected(s[where == 1], t[where == 1]), rtol=1e-5)


def test_loss_sums_stages_by_their_weights():
  s = Output(features={"a": draw(4, 3), "b": draw(4, 2, 2, 3)})
  t = Output(features={"a": draw(4, 2, seed=1), "c": draw(4, 5, seed=2)})
  stages = {"stages": ("a", ("b", "c")), "stage_weights": (2.0, 3.0)}
  terms = jit(functools.partial(probabilistic_knowledge_transfer, eps=1e-6, **stages))(s, t)
  wanted = 2 * expected(s.features["a"], t.features["a"], 1e-6)
  wanted += 3 * expected(s.features["b"], t.features["c"], 1e-6)
  np.testing.assert_allclose(terms.feature, wanted, rtol=1e-5)


@pytest.mark.parametrize(
  ("student", "teacher", "options", "message"),
  [
    ((2, 3), (2, 3), {"eps": 0.0}, "eps is 0.0: it must be a finite number greater than 0"),
    ((2, 3), (3, 3), {}, r"student \(2, 3\) and teacher \(3, 3\) differ in batch size"),
    ((2,), (2, 3), {}, r"student \(2,\) is not \(B, ...\)"),
  ],
)
def test_error_for_wrong_arguments_names_them(student, teacher, options, message):
  s, t = (Output(features={"pooled": jnp.ones(shape)}) for shape in (student, teacher))
  with pytest.raises(ConfigError, match=message):
    probabilistic_knowledge_transfer(s, t, **options)
