"""DIST: the definition, invariances, predictions without correlation, devices with a mask."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.errors import ConfigError
from jaxkd.losses import inter_class_correlation, intra_class_correlation, stronger_teacher
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

KERNELS = {"inter": inter_class_correlation, "intra": intra_class_correlation}
each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


@functools.cache
def compiled(kernel, temperature=2.0):
  return jit(jax.value_and_grad(functools.partial(kernel, temperature=temperature)))


def draw(*shape, seed=0, scale=1.0):
  return np.float32(scale) * np.random.default_rng(seed).normal(size=shape).astype("float32")


def expected(student, teacher, axis, temperature=2.0):
  """The distance by the paper's formula: numpy's correlation of rows or columns."""
  pair = [np.exp(z.astype("float64") / temperature) for z in (student, teacher)]
  pair = [p / p.sum(-1, keepdims=True) for p in pair]
  pair = [p if axis == "inter" else p.T for p in pair]
  found = [np.corrcoef(x, y)[0, 1] for x, y in zip(*pair, strict=True)]
  return temperature**2 * (1 - np.mean(found))


@pytest.mark.parametrize("axis", KERNELS)
def test_distance_equals_the_definition(axis):
  s, t = draw(6, 5, scale=2.0), draw(6, 5, seed=1, scale=2.0)
  np.testing.assert_allclose(compiled(KERNELS[axis])(s, t)[0], expected(s, t, axis), rtol=1e-5)
  weights = {"inter_weight": 2.0, "intra_weight": 0.5, "temperature": 2.0}
  terms = stronger_teacher(Output(s), Output(t), **weights)
  factor = 2.0 if axis == "inter" else 0.5
  np.testing.assert_allclose(terms[axis].logit, factor * expected(s, t, axis), rtol=1e-5)


@given(st.integers(0, 2**16), st.sampled_from([1e-18, 1e-2, 1.0, 1e4, 1e8]))
def test_distances_are_finite_and_between_zero_and_two(seed, scale):
  s, t = draw(6, 5, seed=seed, scale=scale), draw(6, 5, seed=seed + 1, scale=scale)
  for kernel in KERNELS.values():
    value, gradient = compiled(kernel)(s, t)
    assert 0 <= value <= 8.001 and np.isfinite(gradient).all()


@given(st.integers(0, 2**16))
def test_distance_of_equal_logits_is_zero_up_to_eps(seed):
  s = draw(6, 5, seed=seed, scale=2.0)
  for kernel in KERNELS.values():
    value, gradient = compiled(kernel)(s, s)
    assert 0 <= value < 1e-4 and np.abs(gradient).max() < 1e-5


@given(st.integers(0, 2**16), st.floats(0.1, 0.9))
def test_probabilities_are_matched_up_to_shift_and_scale_of_each_example(seed, share):
  s, t = draw(6, 5, seed=seed), draw(6, 5, seed=seed + 1)
  # A mixture with the uniform distribution is a linear function of the probabilities.
  mixed = np.log(share * jax.nn.softmax(s) + (1 - share) / 5)
  kernel = compiled(inter_class_correlation, 1.0)
  np.testing.assert_allclose(kernel(mixed, t)[0], kernel(s, t)[0], rtol=1e-4, atol=1e-5)


@each_kernel
def test_predictions_that_do_not_vary_have_the_distance_one_and_no_gradient(kernel):
  t = draw(6, 5, seed=1)
  # Three logits of which no sum is exact: their softmax has no exact mean.
  same = np.tile(np.float32([[0.1, 0.7, 0.3, 0.2, 0.9]]), (6, 1))
  s = np.full((6, 5), 0.1, "float32") if kernel is inter_class_correlation else same
  for pair in ((s, t), (s, s)):
    value, gradient = compiled(kernel)(*pair)
    np.testing.assert_allclose(value, 4.0, rtol=1e-6)
    assert not np.any(gradient)
  value, gradient = compiled(intra_class_correlation)(t[:1], t[1:2])
  np.testing.assert_allclose(value, 4.0, rtol=1e-6)
  assert not np.any(gradient)


@each_kernel
def test_an_impossible_class_has_the_probability_zero(kernel):
  s, t = draw(6, 5), draw(6, 5, seed=1)
  s[:, 2] = t[:3, 2] = -np.inf
  value, gradient = compiled(kernel)(s, t)
  low = [np.maximum(z, -1e5) for z in (s, t)]
  np.testing.assert_allclose(value, compiled(kernel)(*low)[0], rtol=1e-5)
  assert np.isfinite(gradient).all() and not np.any(gradient[:, 2])


@each_kernel
def test_dense_logits_equal_their_flattened_rows(kernel):
  s, t = draw(2, 3, 5), draw(2, 3, 5, seed=1)
  flat = compiled(kernel)(s.reshape(6, 5), t.reshape(6, 5))[0]
  np.testing.assert_allclose(compiled(kernel)(s, t)[0], flat, rtol=1e-5)
  some = np.array([[1, 0, 1], [0, 0, 1]], bool)
  masked = jit(functools.partial(kernel, where=some))(s, t)
  np.testing.assert_allclose(masked, kernel(s[some], t[some]), rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradient_on_four_devices_equal_the_global_batch(masked):
  s, t = draw(12, 5), draw(12, 5, seed=1)
  where = np.arange(12) < (7 if masked else 12)  # the last device may have none that count
  s[~where] = t[~where] = np.nan

  def loss(s, t, where, axis_name):
    parts = stronger_teacher(
      Output(s), Output(t), axis_name=axis_name, where=where if masked else None
    )
    return parts["inter"].logit + 3.0 * parts["intra"].logit

  step = jax.value_and_grad(functools.partial(loss, axis_name="batch"))
  split = [x.reshape(4, 3, *x.shape[1:]) for x in (s, t, where)]
  values, slopes = jit(jax.vmap(step, axis_name="batch"))(*split)
  whole = jit(jax.value_and_grad(functools.partial(loss, axis_name=None)))
  value, slope = whole(s[where], t[where], where[where])
  np.testing.assert_allclose(values, [value] * 4, rtol=1e-5)
  slopes = slopes.reshape(12, 5) / 4
  np.testing.assert_allclose(slopes[where], slope, rtol=1e-4, atol=1e-6)
  assert not np.any(slopes[~where])


@pytest.mark.parametrize(
  ("teacher", "options", "message"),
  [
    ((2, 4), {}, r"student \(2, 3\) and teacher \(2, 4\) differ in shape"),
    ((2, 3), {"temperature": -1.0}, "temperature is -1.0: it must be a finite number"),
  ],
)
def test_error_for_wrong_arguments_names_them(teacher, options, message):
  with pytest.raises(ConfigError, match=message):
    stronger_teacher(Output(jnp.ones((2, 3))), Output(jnp.ones(teacher)), **options)
