"""Networks that agree up to rounding: losses with a kink have value 0 and gradient 0."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd import losses
from jaxkd.losses._numerics import beyond_rounding, l2_distance
from jaxkd.types import Output

SCALES = pytest.mark.parametrize("scale", [1e-12, 1.0, 1e8])


def symmetry(s, t, **options):
  return losses.gradient_symmetry(
    Output(gradients={"images": s, "flipped_images": t}), **options
  ).total


# Kernels with a kink where both sides agree.
KERNELS = {
  "attention_map_l2": losses.attention_map_l2,
  "attention_map_l2, power 4": functools.partial(losses.attention_map_l2, power=4),
  "gradient_l2": losses.gradient_l2,
  "gradient_l2, normalised": functools.partial(losses.gradient_l2, normalize=True, eps=1e-30),
  "gradient_symmetry": symmetry,
  "euclidean_distance": losses.euclidean_distance,
  "factor_l1": functools.partial(losses.factor_l1, eps=1e-30),
  "factor_lp": functools.partial(losses.factor_lp, eps=1e-30),
  "factor_lp, order 3": functools.partial(losses.factor_lp, order=3, eps=1e-30),
  "factor_map_lp": losses.factor_map_lp,
  "fsp_column_norm": lambda s, t: losses.fsp_column_norm(s[:, 0], t[:, 0]),
}
each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


def draw(shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.cache
def compiled(kernel):
  return jax.jit(jax.value_and_grad(kernel))


@each_kernel
@SCALES
def test_value_and_gradient_are_zero_if_sides_differ_by_rounding(kernel, scale):
  x = scale * draw((4, 6, 5, 3))
  # Errors of the size of a typical value's rounding, also where the value is small.
  error = np.sqrt(np.mean(np.square(x))) * np.finfo("float32").eps * draw(x.shape, 1)
  value, gradient = compiled(kernel)(x + error, x)
  assert value == 0 and not np.any(gradient)


@each_kernel
@SCALES
def test_differences_beyond_rounding_are_accurate(kernel, scale):
  x = scale * draw((4, 6, 5, 3))
  s = x + 0.1 * scale * draw(x.shape, 1)
  value, gradient = compiled(kernel)(s, x)
  with jax.enable_x64(True):
    wide = compiled(kernel)(*(jnp.asarray(np.asarray(z), "float64") for z in (s, x)))
    exact, slope = jax.tree.map(np.asarray, wide)
  if kernel is KERNELS["attention_map_l2, power 4"] and scale == 1e-12:
    return  # The norm of such maps is below eps, so they are zeros by design.
  np.testing.assert_allclose(value, exact, rtol=1e-4)
  assert np.linalg.norm(gradient - slope) <= 1e-3 * np.linalg.norm(slope)


@pytest.mark.long
@each_kernel
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7, 16])
def test_value_and_gradient_are_zero_for_a_network_compiled_twice_in_one_program(kernel, batch):
  images, weights = draw((batch, 8, 8, 3)), draw((3, 3, 3, 6), 1)

  def network(w, images):
    maps = jax.lax.conv_general_dilated(
      images, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(maps).reshape(batch, 4, 2, 4, 2, 6).mean((2, 4))

  def loss(w, scale):
    # The same function of the same values, which the compiler may fuse differently.
    return kernel(network(w, images), network(weights * scale / 3.0, images * 3.0))

  value, gradient = jax.jit(jax.value_and_grad(loss))(weights, jnp.float32(1))
  assert value == 0 and not np.any(gradient)


@given(
  seed=st.integers(0, 2**31),
  scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6, 1e12]),
  gap=st.sampled_from([0.0, 1e-8, 1e-7, 1e-4, 1e-2, 1.0]),
)
def test_distance_equals_numpy_or_is_zero_within_rounding(seed, scale, gap):
  x, step = np.random.default_rng(seed).normal(size=(2, 5, 8)).astype("float32")
  x, y = np.float32(scale) * (x + np.float32(gap) * step), np.float32(scale) * x
  value, gradient = distances(x, y)
  exact = np.linalg.norm(x.astype("float64") - y, axis=1)
  relative = exact / np.linalg.norm(y.astype("float64"), axis=1)
  near, far = relative < 1.5e-6, relative > 2.5e-6
  assert not np.any(value[near]) and not np.any(gradient[near])
  np.testing.assert_allclose(value[far], exact[far], rtol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(gradient[far], axis=1), 1.0, rtol=1e-5)


@jax.jit
def distances(x, y):
  value, vjp = jax.vjp(lambda x: l2_distance(x, y, 1), x)
  return value, vjp(jnp.ones_like(value))[0]


def test_distance_to_zero_is_not_zero():
  x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
  np.testing.assert_array_equal(l2_distance(x, 0.0 * x, 1), [5.0, 0.0])
  np.testing.assert_array_equal(l2_distance(0.0 * x, x, 1), [5.0, 0.0])
  assert beyond_rounding(jnp.float32(1e-6), jnp.float32(1.0)) == 0
  assert beyond_rounding(jnp.float32(1e-5), jnp.float32(1.0)) > 0


def test_distance_over_devices_is_compared_with_the_global_norm():
  # The difference on one device is large beside its own norm, and rounding beside the global one.
  t = jnp.stack([jnp.full((1, 4), 1e8), jnp.ones((1, 4))])
  s = t.at[1].add(0.5)
  pooled = functools.partial(losses.euclidean_distance, axis_name="batch")
  value = jax.vmap(pooled, axis_name="batch")(s, t)
  np.testing.assert_array_equal(value, [0.0, 0.0])
  assert losses.euclidean_distance(s, t) == 0
