"""Average and max pooling to a given size, and matching the sizes of two maps."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.errors import ConfigError
from jaxkd.losses import adaptive_average_pool, adaptive_max_pool, match_sizes

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def bins(size, count):
  return [(int(np.floor(i * size / count)), int(np.ceil((i + 1) * size / count)))
          for i in range(count)]  # fmt: skip


def averaged_by_hand(x, height, width):
  """The mean of each bin, one bin at a time."""
  out = np.zeros((x.shape[0], height, width, x.shape[3]), x.dtype)
  for i, (top, bottom) in enumerate(bins(x.shape[1], height)):
    for j, (left, right) in enumerate(bins(x.shape[2], width)):
      out[:, i, j] = x[:, top:bottom, left:right].mean(axis=(1, 2))
  return out


SIZES = st.sampled_from([(4, 6, 2, 3), (5, 5, 3, 3), (7, 3, 2, 3), (3, 4, 5, 4), (6, 5, 1, 1)])


@given(SIZES, st.integers(0, 9))
def test_average_pooling_is_the_mean_of_each_bin(sizes, seed):
  rows, columns, height, width = sizes
  x = np.random.default_rng(seed).normal(size=(2, rows, columns, 3)).astype("float32")
  expected = averaged_by_hand(x, height, width)
  np.testing.assert_allclose(
    adaptive_average_pool(x, height, width), expected, rtol=2e-6, atol=1e-6
  )


def test_average_pooling_to_the_same_size_changes_nothing():
  x = jnp.arange(12.0).reshape(1, 3, 4, 1)
  assert (adaptive_average_pool(x, 3, 4) == x).all()


def test_average_pooling_keeps_the_dtype_and_accumulates_in_float32():
  x = jnp.full((1, 32, 32, 1), 1.0, jnp.bfloat16).at[0, 0, 0, 0].set(257.0)
  pooled = adaptive_average_pool(x, 1, 1)
  assert pooled.dtype == jnp.bfloat16 and float(pooled.squeeze()) == 1.25


@pytest.mark.parametrize(("shape", "size"), [((4, 4, 3), (2, 2)), ((1, 4, 4, 3), (0, 2))])
def test_average_pooling_raises_for_invalid_maps_and_sizes(shape, size):
  with pytest.raises(ConfigError, match="adaptive_average_pool"):
    adaptive_average_pool(jnp.ones(shape), *size)


@pytest.mark.parametrize(
  ("student", "teacher", "size"),
  [
    ((8, 8), (4, 4), (4, 4)),
    ((4, 4), (8, 8), (4, 4)),
    ((2, 5), (2, 5), (2, 5)),
    ((8, 6), (4, 4), (4, 4)),
    ((8, 4), (4, 2), (4, 2)),
    ((3, 4), (6, 9), (3, 4)),
    ((4, 4), (4, 6), (4, 4)),
  ],
)
def test_map_with_more_rows_is_pooled_to_the_other(student, teacher, size):
  s, t = match_sizes(jnp.ones((2, *student, 3)), jnp.ones((2, *teacher, 5)))
  assert s.shape == (2, *size, 3) and t.shape == (2, *size, 5)


def test_match_sizes_leaves_vectors_unchanged_and_rejects_a_vector_with_a_map():
  s, t = match_sizes(jnp.ones((2, 3)), jnp.zeros((2, 3)))
  assert s.shape == t.shape == (2, 3)
  with pytest.raises(ConfigError, match=r"student \(2, 3\) and teacher \(2, 4, 4, 3\)"):
    match_sizes(jnp.ones((2, 3)), jnp.ones((2, 4, 4, 3)))


def maxima_by_hand(x, height, width):
  """The maximum of each bin, and for each position the number of bins whose first maximum it is."""
  out = np.zeros((x.shape[0], height, width, x.shape[3]), x.dtype)
  chosen = np.zeros_like(x)
  for b, c in np.ndindex(x.shape[0], x.shape[3]):
    for i, (top, bottom) in enumerate(bins(x.shape[1], height)):
      for j, (left, right) in enumerate(bins(x.shape[2], width)):
        window = x[b, top:bottom, left:right, c]
        out[b, i, j, c] = window.max()
        row, column = np.unravel_index(window.argmax(), window.shape)
        chosen[b, top + row, left + column, c] += 1
  return out, chosen


@functools.cache
def max_pool(height, width):
  """A compiled function that returns the pooled maps and the gradient of their sum."""

  def both(x):
    out, vjp = jax.vjp(lambda x: adaptive_max_pool(x, height, width), x)
    return out, vjp(jnp.ones_like(out))[0]

  return jit(both)


@given(st.sampled_from([(4, 6, 2, 3), (5, 4, 3, 3), (3, 2, 5, 2), (4, 3, 1, 1)]), st.integers(0, 9))
def test_max_pooling_and_its_gradient_use_the_first_maximum_of_each_bin(sizes, seed):
  rows, columns, height, width = sizes
  # Four distinct values, so that most bins have several maxima.
  x = np.random.default_rng(seed).integers(-3, 1, (2, rows, columns, 3)).astype("float32")
  pooled, gradient = max_pool(height, width)(x)
  expected, chosen = maxima_by_hand(x, height, width)
  np.testing.assert_array_equal(pooled, expected)
  np.testing.assert_array_equal(gradient, chosen)


def test_max_pooling_keeps_the_dtype_and_propagates_non_finite_values():
  x = jnp.full((1, 4, 4, 2), -jnp.inf, jnp.bfloat16).at[0, 3, 3, 1].set(jnp.nan)
  pooled, _ = max_pool(3, 2)(x)
  assert pooled.dtype == jnp.bfloat16 and pooled.shape == (1, 3, 2, 2)
  assert (pooled[..., 0] == -jnp.inf).all()
  assert jnp.isnan(pooled[0, -1, -1, 1]) and jnp.isnan(pooled).sum() == 1


@pytest.mark.parametrize(("shape", "size"), [((4, 4, 3), (2, 2)), ((1, 4, 4, 3), (0, 2))])
def test_max_pooling_raises_for_invalid_maps_and_sizes(shape, size):
  with pytest.raises(ConfigError, match="adaptive_max_pool"):
    adaptive_max_pool(jnp.ones(shape), *size)
