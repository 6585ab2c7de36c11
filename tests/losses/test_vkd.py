"""VkD: definition, invariances, constant channels, devices, and the orthogonal kernel."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxkd.adapters import OrthogonalProjector
from jaxkd.adapters.orthogonal import orthogonal_kernel
from jaxkd.errors import ConfigError
from jaxkd.losses import normalized_huber, orthogonal_projection, standardized_huber
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


def huber(x):
  return np.where(np.abs(x) < 1, 0.5 * x**2, np.abs(x) - 0.5).mean()


def test_loss_equals_the_definition():
  s, t = 2 * draw(3, 5), draw(3, 2, 2, 5, seed=1)
  pooled = np.float64(t.mean((1, 2)))
  norm = (pooled - pooled.mean(1, keepdims=True)) / np.sqrt(pooled.var(1, keepdims=True) + 1e-5)
  np.testing.assert_allclose(normalized_huber(s, t), huber(s - norm), rtol=1e-5)
  np.testing.assert_allclose(normalized_huber(s, 1e8 * t + 1), normalized_huber(s, 1e4 * t), 1e-4)


def test_standardised_loss_equals_the_definition_and_ignores_scale_and_offset():
  s, t = draw(3, 4, 5), draw(3, 4, 5, seed=1)

  def standard(x):
    rows = np.float64(x).reshape(-1, 5)
    return (rows - rows.mean(0)) / rows.std(0, ddof=1)

  value = standardized_huber(s, t)
  np.testing.assert_allclose(value, huber(standard(s) - standard(t)), rtol=1e-5)
  scaled = standardized_huber(3 * s - draw(1, 1, 5, seed=2), 1e4 * t + 5)
  np.testing.assert_allclose(scaled, value, rtol=1e-3)
  assert standardized_huber(2 * t, t) < 1e-10


@pytest.mark.parametrize("scale", [1e8, 1e-18, 0.0])
@pytest.mark.parametrize("kernel", [normalized_huber, standardized_huber])
def test_extreme_features_and_constant_channels_have_finite_gradients(scale, kernel):
  s, t = np.float32(scale) * draw(4, 3), np.float32(scale) * draw(4, 3, seed=1)
  s[:, 0] = t[:, 1] = np.float32(0.1)
  value, gradient = jit(jax.value_and_grad(kernel))(s, t)
  assert np.isfinite(value) and np.isfinite(gradient).all()
  one = jax.value_and_grad(kernel)(s[:1], t[:1])
  assert np.isfinite(one[0]) and np.isfinite(one[1]).all()


@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradient_on_four_devices_equal_the_global_batch(masked):
  weights, inputs, targets = draw(4, 3), draw(8, 2, 4, seed=1), draw(8, 2, 3, seed=2)
  where = np.arange(8) < (5 if masked else 8)  # the last device has none that count

  def gradient(weights, inputs, targets, where, axis_name):
    def loss(weights):
      mask = where if masked else None
      return standardized_huber(inputs @ weights, targets, axis_name=axis_name, where=mask)

    value, slope = jax.value_and_grad(loss)(weights)
    return value, slope if axis_name is None else jax.lax.pmean(slope, axis_name)

  split = [x.reshape(4, 2, *x.shape[1:]) for x in (inputs, targets, where)]
  step = functools.partial(gradient, axis_name="batch")
  found = jit(jax.vmap(step, axis_name="batch", in_axes=(None, 0, 0, 0)))(weights, *split)
  whole = functools.partial(gradient, axis_name=None)
  wanted = jit(whole)(weights, *(x[where] for x in (inputs, targets, where)))
  for one, other in zip(found, wanted, strict=True):
    np.testing.assert_allclose(one, np.broadcast_to(other, one.shape), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_kernel_has_orthonormal_rows_or_columns_whatever_its_parameters(shape):
  raw, base = draw(*shape), scipy.linalg.qr(draw(max(shape), max(shape), seed=1))[0]
  kernel = np.asarray(orthogonal_kernel(raw, base))
  assert kernel.shape == shape[::-1]
  gram = kernel @ kernel.T if shape[0] >= shape[1] else kernel.T @ kernel
  np.testing.assert_allclose(gram, np.eye(min(shape)), atol=1e-5)
  # By -1 on the diagonal alone, the base is unchanged.
  start = np.asarray(orthogonal_kernel(-np.eye(*shape, dtype="float32"), base))
  wanted = base[:, : shape[1]].T if shape[0] >= shape[1] else base[:, : shape[0]]
  np.testing.assert_allclose(start, wanted, atol=1e-6)


def test_kernels_equal_reflections_one_after_the_other_and_the_matrix_exponential():
  raw, eye = draw(5, 3), np.eye(5, dtype="float32")
  product = np.eye(5)
  for k in range(3):
    v = np.eye(5)[:, k] + np.where(np.arange(5) > k, raw[:, k], 0)
    product = product @ (np.eye(5) - 2 * np.outer(v, v) / (v @ v))
  signed = product[:, :3] * np.where(np.diag(raw) < 0, -1, 1)
  np.testing.assert_allclose(orthogonal_kernel(raw, eye), signed.T, atol=1e-5)
  np.testing.assert_allclose(orthogonal_kernel(raw.T, eye), signed, atol=1e-5)
  square = draw(4, 4)
  skew = np.tril(square) - np.tril(square).T
  wanted = scipy.linalg.expm(skew).T
  np.testing.assert_allclose(orthogonal_kernel(square, np.eye(4)), wanted, atol=1e-5)


def test_projector_averages_tokens_without_prefix_or_projects_each():
  x = draw(2, 5, 4)
  pooled = OrthogonalProjector(6, prefix=1)
  variables = pooled.init(jax.random.key(0), x, True)
  kernel = orthogonal_kernel(variables["params"]["raw"], variables["constants"]["base"])
  np.testing.assert_allclose(pooled.apply(variables, x, True), x[:, 1:].mean(1) @ kernel, 1e-4)
  each = OrthogonalProjector(6, positions=True, affine=True)
  variables = each.init(jax.random.key(0), x, True)
  assert set(variables["params"]) == {"raw", "scale", "bias"}
  assert each.apply(variables, x, True).shape == (2, 5, 6)


def test_error_for_wrong_arguments_names_them():
  x = Output(features={"stage3": jnp.ones((2, 3))})
  with pytest.raises(ConfigError, match="unknown standardize 'none'"):
    orthogonal_projection(x, x, standardize="none")
  with pytest.raises(ConfigError, match=r"normalized_huber: student \(2, 3\) and teacher \(2, 4\)"):
    normalized_huber(jnp.ones((2, 3)), jnp.ones((2, 4)))
