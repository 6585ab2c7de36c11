"""Gradient-based attention transfer: distances, options and symmetry."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxkd.errors import ConfigError
from jaxkd.losses import gradient_attention_transfer, gradient_symmetry
from jaxkd.losses import gradient_l2 as eager_l2
from jaxkd.losses import gradient_mse as eager_mse
from jaxkd.types import Output, Terms

# Compiled as a whole, which is faster than eager operations.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
gradient_l2, gradient_mse = (
  jit(kernel, static_argnames=("normalize", "reduce", "eps")) for kernel in (eager_l2, eager_mse)
)

# Multiples of 1/4: gradients are 0, or large enough that squares do not underflow in float32.
GRADIENTS = hnp.arrays(np.int8, (2, 2, 3, 2), elements=st.integers(-40, 40)).map(
  lambda x: x.astype(np.float32) / 4
)
normalized_l2 = jit(jax.value_and_grad(functools.partial(eager_l2, normalize=True)))
each_kernel = pytest.mark.parametrize("kernel", [gradient_l2, gradient_mse])


def drawn(*shapes, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=shape).astype("float32") for shape in shapes]


def gradients_at(**gradients):
  return Output(gradients=gradients)


def test_kernels_equal_the_paper_formula_averaged_over_examples():
  s, t = drawn((3, 4, 4, 2), (3, 4, 4, 2))
  distances = [np.linalg.norm((a - b).ravel()) for a, b in zip(s, t, strict=True)]
  np.testing.assert_allclose(gradient_l2(s, t), np.mean(distances), rtol=1e-5)
  np.testing.assert_allclose(gradient_mse(s, t), np.mean((s - t) ** 2), rtol=1e-5)


@given(GRADIENTS, GRADIENTS, st.floats(0.125, 8), st.floats(0.125, 8))
def test_normalized_distance_ignores_the_size_of_gradients(s, t, a, b):
  value, _ = normalized_l2(s, t)
  np.testing.assert_allclose(
    normalized_l2(np.float32(a) * s, np.float32(b) * t)[0], value, rtol=1e-4, atol=1e-6
  )
  assert value <= 2.0001


@given(GRADIENTS)
def test_normalized_distance_of_equal_gradients_is_zero_with_a_finite_gradient(x):
  value, gradient = normalized_l2(x, x)
  # Compilers may round the two sides differently.
  assert value < 1e-6 and np.isfinite(gradient).all()


@each_kernel
def test_value_and_gradient_are_zero_for_equal_gradients(kernel):
  (x,) = drawn((2, 2, 2, 3))
  value, gradient = jit(jax.value_and_grad(kernel.__wrapped__))(x, x)
  assert value == 0 and (gradient == 0).all()


def test_distance_depends_on_the_size_of_gradients_unless_normalized():
  s, t = drawn((2, 3, 3, 1), (2, 3, 3, 1))
  np.testing.assert_allclose(gradient_l2(4 * s, 4 * t), 4 * gradient_l2(s, t), rtol=1e-5)
  direction = s / np.linalg.norm(s.reshape(2, -1), axis=1)[:, None, None, None]
  np.testing.assert_allclose(gradient_l2(s, 0 * t, normalize=True), 1.0, rtol=1e-6)
  np.testing.assert_allclose(gradient_l2(s, direction, normalize=True), 0.0, atol=1e-6)


@each_kernel
def test_normalized_zero_gradients_stay_zero_and_have_zero_gradient(kernel):
  zero, (some,) = jnp.zeros((2, 2, 2, 1)), drawn((2, 2, 2, 1))
  # l2_normalize would have a slope of 1e12 here.
  normalized = functools.partial(kernel.__wrapped__, normalize=True)
  value, gradient = jit(jax.value_and_grad(normalized))(zero, some)
  np.testing.assert_allclose(value, 1.0 if kernel is gradient_l2 else 0.25, rtol=1e-6)
  assert (gradient == 0).all()
  # Small gradients, as of a very confident network, still have a direction.
  np.testing.assert_allclose(kernel(1e-9 * some, some, normalize=True), 0.0, atol=1e-6)


@pytest.mark.parametrize(
  ("reduce", "numpy"), [("abs_mean", np.mean), ("abs_sum", np.sum), ("abs_max", np.max)]
)
def test_reduce_gives_maps_of_absolute_values(reduce, numpy):
  s, t = drawn((2, 3, 3, 4), (2, 3, 3, 4))
  gap = (numpy(np.abs(s), axis=-1) - numpy(np.abs(t), axis=-1)).reshape(2, -1)
  found = gradient_l2(s, t, reduce=reduce)
  np.testing.assert_allclose(found, np.linalg.norm(gap, axis=1).mean(), rtol=1e-5)
  np.testing.assert_allclose(gradient_mse(s, -s, reduce=reduce), 0.0, atol=1e-7)


@each_kernel
def test_reduce_makes_stages_of_different_channels_and_sizes_comparable(kernel):
  # Values of the larger map cancel within each pooled bin; absolute values do not.
  signs = np.tile(np.array([1.0, -1.0], np.float32), (2, 4, 2))[..., None]
  s, t = np.repeat(signs, 3, axis=-1), jnp.ones((2, 2, 2, 5))
  assert kernel(s, t, reduce="abs_mean") == 0
  expected = 1.0 if kernel is gradient_mse else np.sqrt(12)
  np.testing.assert_allclose(kernel(s, t[..., :3]), expected, rtol=1e-6)


def test_larger_map_is_pooled_to_the_smaller():
  s, t = drawn((2, 4, 4, 3), (2, 2, 2, 3))
  pooled = s.reshape(2, 2, 2, 2, 2, 3).mean(axis=(2, 4))
  np.testing.assert_allclose(gradient_mse(s, t), gradient_mse(pooled, t), rtol=1e-5)
  np.testing.assert_allclose(gradient_mse(t, s), gradient_mse(t, pooled), rtol=1e-5)


def test_gradients_of_vectors_are_comparable():
  s, t = drawn((2, 5), (2, 5))
  expected = np.linalg.norm(s - t, axis=1).mean()
  np.testing.assert_allclose(gradient_l2(s, t), expected, rtol=1e-5)


@pytest.mark.parametrize(("norm", "kernel"), [("l2", gradient_l2), ("mse", gradient_mse)])
def test_loss_sums_weighted_stages_with_its_options(norm, kernel):
  s, t, a, b = drawn((2, 4, 4, 3), (2, 4, 4, 3), (2, 4, 4, 2), (2, 2, 2, 5))
  options = {"normalize": True, "reduce": "abs_max", "eps": 0.125}
  terms = gradient_attention_transfer(
    gradients_at(images=s, stage1=a),
    gradients_at(images=t, stage2=b),
    stages=["images", ("stage1", "stage2")],
    stage_weights=[0.5, 2.0],
    norm=norm,
    **options,
  )
  assert isinstance(terms, Terms) and terms.logit == 0
  expected = 0.5 * kernel(s, t, **options) + 2.0 * kernel(a, b, **options)
  np.testing.assert_allclose(terms.feature, expected, rtol=1e-6)


def test_defaults_equal_the_paper_formula():
  s, t = drawn((2, 4, 4, 3), (2, 4, 4, 3))
  terms = gradient_attention_transfer(gradients_at(images=s), gradients_at(images=t))
  np.testing.assert_allclose(terms.feature, gradient_l2(s, t), rtol=1e-6)


def test_symmetry_is_the_distance_between_original_and_mirrored_gradients():
  x, y = drawn((2, 4, 4, 3), (2, 4, 4, 3))
  mirrored = gradients_at(images=x, flipped_images=y)
  for options in ({}, {"normalize": True, "eps": 0.5}):
    found = gradient_symmetry(mirrored, **options).feature
    np.testing.assert_allclose(found, gradient_l2(x, y, **options), rtol=1e-6)
  assert gradient_symmetry(gradients_at(images=x, flipped_images=x)).total == 0


def test_symmetry_gives_gradients_to_both_sides():
  x, y = drawn((2, 2, 2, 1), (2, 2, 2, 1))

  def loss(x, y):
    return gradient_symmetry(gradients_at(images=x, flipped_images=y)).total

  gradients = jit(jax.grad(loss, (0, 1)))
  left, right = gradients(x, y)
  assert np.abs(left).max() > 0.01
  np.testing.assert_allclose(left, -right, rtol=1e-6)


def test_symmetry_error_names_what_is_missing_or_differs():
  x = jnp.ones((2, 2, 2, 1))
  with pytest.raises(ConfigError, match=r"unknown student stage 'flipped_images'.*known: images"):
    gradient_symmetry(gradients_at(images=x))
  with pytest.raises(ConfigError, match=r"images \(2, 2, 2, 1\) and flipped_images \(1, 2, 2, 1"):
    gradient_symmetry(gradients_at(images=x, flipped_images=x[:1]))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"norm": "l1"}, "unknown norm 'l1'"),
    ({"reduce": "mean"}, "unknown reduce 'mean': did you mean 'abs_mean'"),
    ({"reduce": None}, "unknown reduce None"),
    ({"eps": 0.0}, r"eps is 0\.0"),
    ({"stages": ["stage1"]}, "unknown student stage 'stage1'"),
  ],
)
def test_wrong_options_raise_an_error_that_names_them(options, message):
  x = gradients_at(images=jnp.ones((1, 2, 2, 1)))
  with pytest.raises(ConfigError, match=message):
    gradient_attention_transfer(x, x, **options)


@pytest.mark.parametrize(
  ("student", "teacher", "reduce", "message"),
  [
    ((2, 4, 4, 3), (2, 2, 2, 5), "none", r"student \(2, 4, 4, 3\) and teacher \(2, 2, 2, 5\)"),
    ((2, 4, 4, 3), (3, 4, 4, 3), "abs_sum", r"student \(2, 4, 4, 3\) and teacher \(3, 4, 4, 3\)"),
    ((2, 5), (2, 4), "none", r"student \(2, 5\) and teacher \(2, 4\)"),
    ((2, 5), (2, 5), "abs_max", r"reduce='abs_max' needs maps \(B, H, W, C\), not \(2, 5\)"),
    ((2, 4, 4, 3), (2, 5), "none", "not a feature map"),
  ],
)
def test_error_for_incompatible_shapes_names_the_stage(student, teacher, reduce, message):
  s, t = gradients_at(images=jnp.ones(student)), gradients_at(images=jnp.ones(teacher))
  with pytest.raises(ConfigError, match=f"^stage 'images': .*{message}"):
    gradient_attention_transfer(s, t, reduce=reduce)


def test_error_for_an_output_without_gradients_names_the_student():
  with pytest.raises(ConfigError, match="the student's Output has no gradients"):
    gradient_attention_transfer(Output(), Output())
