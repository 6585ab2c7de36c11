"""Features of tokens (B, T, D) with a mask (B, T): tokens that are padding do not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.losses import (
  angle_huber,
  boundary_disagreement,
  boundary_margin,
  euclidean_distance,
  hint_mse,
  masked_sum_of_squares,
  pairwise_distance_huber,
  similarity_mse,
)

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


def test_boundaries_are_those_of_the_tokens_that_count():
  s, t = features()
  kept, examples = MASK == 1, 4
  hinges = np.where(t > 0, np.maximum(1 - s, 0), np.maximum(1 + s, 0))[kept] ** 2
  for reduction, divisor in (("sum", 1), ("batch", examples), ("mean", hinges.size)):
    found = boundary_margin(s, t, reduction=reduction, where=MASK)
    np.testing.assert_allclose(found, hinges.sum() / divisor, rtol=1e-6)
  differ = (s > 0) != (t > 0)
  shares = [differ[i][kept[i]].mean() for i in (0, 1, 2, 4)]
  np.testing.assert_allclose(boundary_disagreement(s, t, where=MASK), np.mean(shares), rtol=1e-6)


RELATIONS = [pairwise_distance_huber, angle_huber, similarity_mse]
ALIKE = [hint_mse, boundary_margin, masked_sum_of_squares, euclidean_distance]


@pytest.mark.parametrize("kernel", [*ALIKE, *RELATIONS])
def test_a_mask_of_another_number_of_tokens_is_refused(kernel):
  s, _ = features()
  message = (
    r"where \(5, 4\) is a mask of 4 tokens and features \(5, 3, 3\) have 3: expected as many"
  )
  with pytest.raises(ConfigError, match=message):
    kernel(s[:, :3], s[:, :3], where=MASK)
  if kernel in RELATIONS:
    with pytest.raises(ConfigError, match=message):
      kernel(s, s[:, :3], where=MASK)
    assert np.isfinite(kernel(s, s[:, 0], where=MASK))


@pytest.mark.parametrize(
  "kernel", [*ALIKE, *(pytest.param(x, marks=pytest.mark.long) for x in RELATIONS)]
)
def test_padding_may_hold_nan_and_has_no_gradient(kernel):
  s, t = features()
  padding = (MASK == 0)[..., None]
  expected = kernel(s, t, where=MASK)
  spoiled = [jnp.where(padding, jnp.nan, x) for x in (s, t)]
  value, gradient = jax.value_and_grad(lambda x: kernel(x, spoiled[1], where=MASK))(spoiled[0])
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  assert np.isfinite(gradient).all() and not np.where(padding, gradient, 0).any()
  assert np.where(padding, 0, gradient).any()
