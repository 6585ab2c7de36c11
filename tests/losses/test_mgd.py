"""MGD: sums over an example, masks of examples and positions, and the generator's masks."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.adapters import MaskedGenerator
from jaxkd.errors import ConfigError
from jaxkd.losses import masked_generative, match_sizes, squared_error_sum
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_loss_is_the_sum_over_an_example_and_the_mean_over_examples():
  s, t = draw(3, 2, 2, 4), draw(3, 2, 2, 4, seed=1)
  np.testing.assert_allclose(squared_error_sum(s, t), ((s - t) ** 2).sum() / 3, rtol=1e-6)
  where = np.array([1, 0, 1])
  wanted = ((s - t)[::2] ** 2).sum() / 2
  np.testing.assert_allclose(squared_error_sum(s, t, where=where), wanted, rtol=1e-6)


def test_positions_weight_their_squares():
  s, t, factor = draw(3, 4, 2), draw(3, 4, 2, seed=1), draw(3, 4, seed=2)
  wanted = (factor[..., None] * (s - t) ** 2).sum() / 3
  np.testing.assert_allclose(squared_error_sum(s, t, positions=factor), wanted, rtol=1e-5)


def test_the_larger_map_is_pooled_and_stages_are_weighted():
  s, t = draw(2, 4, 4, 3), draw(2, 2, 2, 3, seed=1)
  sides = (Output(features={"x": x}) for x in (s, t))
  terms = masked_generative(*sides, stages=["x"], stage_weights=[2.0])
  np.testing.assert_allclose(terms.feature, 2 * squared_error_sum(*match_sizes(s, t)), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e8, 1e-18])
def test_extreme_features_have_finite_gradients(scale):
  s, t = np.float32(scale) * draw(1, 2, 2, 3), np.float32(scale) * draw(1, 2, 2, 3, seed=1)
  value, gradient = jit(jax.value_and_grad(squared_error_sum))(s, t)
  assert np.isfinite(value) and np.isfinite(gradient).all()


def masks_of(mask, masked, size=(8, 8)):
  generator = MaskedGenerator(size, 16, False, mask=mask, masked=masked)
  x = jnp.ones((4, *size, 16))

  def drawn(seed):
    return generator.apply({}, x, method="drawn", rngs={"dropout": jax.random.key(seed)})

  return np.asarray(drawn(0)), np.asarray(drawn(1))


@pytest.mark.parametrize(("mask", "shape"), [("channel", (1, 1, 16)), ("spatial", (8, 8, 1))])
def test_a_mask_is_drawn_anew_for_every_step_and_example_with_its_share(mask, shape):
  one, other = masks_of(mask, 0.4)
  assert one.shape == (4, *shape)
  assert (one != other).any() and (one[0] != one[1]).any()
  assert abs((1 - one).mean() - 0.4) < 0.2
  assert masks_of(mask, 0.0)[0].all()


def test_generator_masks_in_training_alone_and_never_scales():
  x = draw(2, 4, 4, 3)
  generator = MaskedGenerator((2, 2), 5, True, mask="channel", masked=1.0)
  keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
  variables = generator.init(keys, x, False)
  assert set(variables["params"]) == {"align", "generation1", "generation2"}
  unmasked = generator.apply(variables, x, None, method="generated")
  np.testing.assert_array_equal(generator.apply(variables, x, False), unmasked)
  # With every channel masked, the student's values have no effect.
  trained = [
    generator.apply(variables, y, True, rngs={"dropout": jax.random.key(2)}) for y in (x, 3 * x)
  ]
  np.testing.assert_array_equal(*trained)
  assert trained[0].shape == (2, 2, 2, 5)


def test_error_for_wrong_arguments_names_them():
  with pytest.raises(ConfigError, match="squared_error_sum: student "):
    squared_error_sum(jnp.ones((2, 3)), jnp.ones((2, 4)))
  with pytest.raises(ConfigError, match="unknown mask 'rows'"):
    masks_of("rows", 0.5)
