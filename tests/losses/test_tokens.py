"""Features of tokens (B, T, D) with a mask (B, T): tokens that are padding do not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.losses import angle_huber, hint_mse, pairwise_distance_huber, similarity_mse

MASK = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0]])


def features():
  rng = np.random.default_rng(0)
  return rng.normal(size=(2, 5, 4, 3)).astype(np.float32)


def test_hint_is_the_mean_over_examples_of_the_mean_over_their_tokens():
  s, t = features()
  squares = [((s[i] - t[i]) ** 2)[MASK[i] == 1].mean() for i in (0, 1, 2, 4)]
  np.testing.assert_allclose(hint_mse(s, t, where=MASK), np.mean(squares), rtol=1e-6)
  examples = np.array([1, 1, 0, 0, 1])
  expected = ((s - t)[examples == 1] ** 2).mean()
  np.testing.assert_allclose(hint_mse(s, t, where=examples), expected, rtol=1e-6)


@pytest.mark.parametrize("kernel", [hint_mse, pairwise_distance_huber, angle_huber, similarity_mse])
def test_padding_may_hold_nan_and_has_no_gradient(kernel):
  s, t = features()
  padding = (MASK == 0)[..., None]
  expected = kernel(s, t, where=MASK)
  spoiled = [jnp.where(padding, jnp.nan, x) for x in (s, t)]
  value, gradient = jax.value_and_grad(lambda x: kernel(x, spoiled[1], where=MASK))(spoiled[0])
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  assert np.isfinite(gradient).all() and not np.where(padding, gradient, 0).any()
  assert np.where(padding, 0, gradient).any()
