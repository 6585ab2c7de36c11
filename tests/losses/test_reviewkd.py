"""ReviewKD: the hierarchical context loss by its definition, and what it depends on."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.losses import hierarchical_context_mse, knowledge_review
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


def pooled(x, size):
  """Average-pool maps of a multiple of the size."""
  batch, rows, columns, channels = x.shape
  blocks = (batch, size, rows // size, size, columns // size, channels)
  return x.reshape(blocks).mean((2, 4))


def expected(student, teacher):
  """The loss by the authors' formula; sizes are powers of two."""
  gap = student.astype("float64") - teacher
  values = [np.mean(gap**2)]
  values += [np.mean(pooled(gap, level) ** 2) for level in (4, 2, 1) if level < gap.shape[1]]
  weights = 0.5 ** np.arange(len(values))
  return weights @ values / weights.sum()


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_loss_equals_the_definition(size):
  s, t = draw(3, size, size, 2), draw(3, size, size, 2, seed=1)
  np.testing.assert_allclose(hierarchical_context_mse(s, t), expected(s, t), rtol=1e-5)


def test_a_constant_difference_counts_alike_at_every_level():
  s = draw(2, 8, 8, 3)
  np.testing.assert_allclose(hierarchical_context_mse(s + 2.0, s), 4.0, rtol=1e-5)


def test_a_difference_without_mean_counts_at_the_full_level_alone():
  signs = (-1.0) ** np.add.outer(np.arange(8), np.arange(8))
  s = draw(2, 8, 8, 3)
  found = hierarchical_context_mse(s + signs[None, :, :, None].astype("float32"), s)
  np.testing.assert_allclose(found, 1 / 1.875, rtol=1e-5)


def test_vectors_have_one_level():
  s, t = draw(4, 5), draw(4, 5, seed=1)
  np.testing.assert_allclose(hierarchical_context_mse(s, t), np.mean((s - t) ** 2), rtol=1e-6)


def test_levels_can_be_chosen():
  s, t = draw(2, 4, 4, 3), draw(2, 4, 4, 3, seed=1)
  only = hierarchical_context_mse(s, t, levels=())
  np.testing.assert_allclose(only, np.mean((s - t) ** 2), rtol=1e-6)


def test_stages_are_summed_with_their_weights():
  s = Output(features={"a": draw(2, 2, 2, 3), "pooled": draw(2, 3)})
  t = Output(features={"a": draw(2, 2, 2, 3, seed=1), "pooled": draw(2, 3, seed=2)})
  found = knowledge_review(s, t, stages=["a", "pooled"], stage_weights=[2.0, 3.0]).feature
  one, other = (hierarchical_context_mse(s.features[x], t.features[x]) for x in ("a", "pooled"))
  np.testing.assert_allclose(found, 2 * one + 3 * other, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-18, 1e8])
def test_gradients_of_tiny_and_huge_maps_are_finite_and_not_zero(scale):
  s, t = (np.float32(scale) * draw(2, 4, 4, 3, seed=seed) for seed in (0, 1))
  value, gradient = jit(jax.value_and_grad(hierarchical_context_mse))(s, t)
  assert np.isfinite(value) and np.isfinite(gradient).all() and np.any(gradient)


@pytest.mark.parametrize(
  ("student", "teacher", "options", "message"),
  [
    ((2, 4, 4, 3), (2, 4, 4, 2), {}, r"stage 'x'.*differ in shape; an adapter .*ReviewFusion"),
    ((2, 4, 3), (2, 4, 3), {}, r"\(2, 4, 3\) are neither \(B, H, W, C\) nor \(B, C\)"),
    ((2, 4, 4, 3), (2, 4, 4, 3), {"levels": (2, 0)}, r"levels is \(2, 0\): expected numbers of"),
  ],
)
def test_error_for_wrong_arguments_names_them(student, teacher, options, message):
  s, t = (Output(features={"x": jnp.ones(shape)}) for shape in (student, teacher))
  with pytest.raises(ConfigError, match=message):
    knowledge_review(s, t, stages=["x"], **options)
