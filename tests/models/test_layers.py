from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxkd.models.layers import convolution


def both(stride, groups, width, dtype=None):
  """A convolution with groups, and XLA's convolution with the same kernel."""
  layer = convolution(width, 3, dtype, stride, groups=groups)

  def ours(x, kernel):
    return layer.apply({"params": {"kernel": kernel}}, x)

  def theirs(x, kernel):
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": groups}
    return lax.conv_general_dilated(x, kernel, (stride,) * 2, ((1, 1),) * 2, **options)

  return ours, theirs


def inputs(groups, width):
  keys = jax.random.split(jax.random.key(0))
  return (
    jax.random.normal(keys[0], (2, 5, 4, 4)),
    jax.random.normal(keys[1], (3, 3, 4 // groups, width)),
  )


@pytest.mark.parametrize(
  ("stride", "groups", "width"), [(1, 4, 4), (2, 4, 4), (1, 4, 8), (2, 2, 2)]
)
def test_grouped_convolution_has_the_values_and_gradients_of_xla(stride, groups, width):
  x, kernel = inputs(groups, width)

  @jax.jit
  def all_of(x, kernel):
    def value_and_gradient(function):
      square = jax.grad(lambda *inputs: jnp.sum(function(*inputs) ** 2), (0, 1))
      return function(x, kernel), square(x, kernel)

    return [value_and_gradient(function) for function in both(stride, groups, width)]

  ours, theirs = jax.tree.map(np.asarray, all_of(x, kernel))
  for found, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_grouped_convolution_in_bfloat16_rounds_the_sum_only():
  ours, _ = both(1, 4, 4, jnp.bfloat16)
  x, kernel = inputs(4, 4)
  found = jax.jit(ours)(x, kernel)
  assert found.dtype == jnp.bfloat16
  rounded = [a.astype(jnp.bfloat16).astype(jnp.float32) for a in (x, kernel)]
  exact = jax.jit(both(1, 4, 4)[1])(*rounded)
  np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(("platform", "convolves"), [("cpu", False), ("cuda", True)])
def test_depthwise_convolution_is_xlas_on_every_device_but_a_cpu(platform, convolves):
  program = jax.jit(both(1, 4, 4)[0]).trace(*inputs(4, 4)).lower(lowering_platforms=(platform,))
  assert ("stablehlo.convolution" in program.as_text()) == convolves
