"""Losses that read the class of a label: impossible classes, weights, dense logits, devices."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from jaxkd import losses

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

KERNELS = {
  "target_class_kl": losses.target_class_kl,
  "other_classes_kl": losses.other_classes_kl,
  "other_classes_cross_entropy": losses.other_classes_cross_entropy,
}
KERNELS = {name: functools.partial(kernel, temperature=2.0) for name, kernel in KERNELS.items()}
each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)

INF = np.inf
# (student, teacher, label, whether the value may be inf)
IMPOSSIBLE = [
  ([1.0, 2.0, -INF], [0.0, 1.0, -INF], 0, False),
  ([1.0, -INF, -INF], [0.0, -INF, -INF], 0, False),
  ([-INF, 0.0, 1.0], [-INF, 1.0, 0.0], 0, False),
  ([1.0, 2.0, 0.0], [-INF, 1.0, 0.0], 0, False),
  ([1.0, 2.0, 0.0], [0.0, -INF, -INF], 0, False),
  ([-INF, 2.0, 0.0], [0.0, 1.0, 0.0], 0, True),
  ([1.0, -INF, -INF], [0.0, 1.0, 0.0], 0, True),
  ([1.0, -INF, 0.0], [0.0, 1.0, 0.0], 0, True),
]


@functools.cache
def compiled(kernel):
  """Value and gradient, compiled once for the shapes that several tests share."""
  return jit(jax.value_and_grad(kernel))


def draw(*leading, classes=4, seed=0):
  rng = np.random.default_rng(seed)
  pair = rng.normal(size=(2, *leading, classes)).astype("float32")
  return (*pair, rng.integers(0, classes, leading))


@each_kernel
@pytest.mark.parametrize(("student", "teacher", "label", "infinite"), IMPOSSIBLE)
def test_impossible_classes_give_no_nan(kernel, student, teacher, label, infinite):
  pair = [np.array([z], "float32") for z in (student, teacher)]
  value, slope = compiled(kernel)(*pair, np.array([label]))
  assert not np.isnan(value) and (infinite or np.isfinite(value)) and value >= 0
  assert np.isfinite(slope).all()


@each_kernel
def test_a_traced_temperature_takes_a_finite_gradient(kernel):
  s, t, y = draw(3)
  s[0, (y[0] + 1) % 4] = t[0, (y[0] + 1) % 4] = -np.inf
  of_temperature = jit(jax.value_and_grad(lambda T, s, t: kernel(s, t, y, temperature=T)))
  _, slope = of_temperature(3.0, s, t)
  with jax.enable_x64(True):
    pair = tuple(np.float64(z) for z in (s, t))
    up, down = (float(of_temperature(np.float64(T), *pair)[0]) for T in (3.001, 2.999))
  np.testing.assert_allclose(slope, (up - down) / 0.002, rtol=1e-3)


@each_kernel
def test_dense_logits_equal_their_flattened_rows(kernel):
  s, t, y = draw(2, 3)
  kernel = jit(kernel)
  flat = kernel(s.reshape(6, 4), t.reshape(6, 4), y.reshape(6))
  np.testing.assert_allclose(kernel(s, t, y), flat, rtol=1e-5)
  some = np.array([[1, 0, 1], [0, 0, 1]], bool)
  np.testing.assert_allclose(kernel(s, t, y, where=some), kernel(s[some], t[some], y[some]), 1e-5)


@each_kernel
def test_the_mean_is_that_of_the_labels_by_their_weights(kernel):
  s, t, y = draw(4)
  kernel = jit(kernel)
  weights = np.array([1.0, 0.0, 0.5, 2.0], "float32")
  s[1] = t[1] = np.nan
  unknown = np.where(weights > 0, y, -1)
  each = [kernel(s[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in (0, 2, 3)]
  wanted = np.dot(each, [1.0, 0.5, 2.0]) / 3.5
  np.testing.assert_allclose(kernel(s, t, unknown, weights), wanted, rtol=1e-5)
  assert kernel(s, t, unknown, np.zeros(4)) == 0


@each_kernel
def test_probabilities_name_the_largest_and_a_label_that_is_no_class_gives_nan(kernel):
  s, t, y = draw(4)
  mixed = 0.6 * np.eye(4)[y] + 0.4 * np.eye(4)[(y + 1) % 4]
  run = compiled(kernel)
  np.testing.assert_allclose(run(s, t, mixed.astype("float32"))[0], run(s, t, y)[0], rtol=1e-6)
  for wrong in (np.where(np.arange(4) == 2, 4, y), np.where(np.arange(4) == 2, -1, y)):
    value, slope = run(s, t, wrong)
    assert np.isnan(value) and np.isnan(slope[2]).all()


@each_kernel
def test_value_and_gradient_over_devices_equal_the_global_batch(kernel):
  s, t, y = draw(6)
  weights = np.array([1.0, 0.0, 0.5, 0.0, 0.0, 0.0], "float32")  # none on the last device

  def shard(s, t, y, w):
    return jax.value_and_grad(lambda s: kernel(s, t, y, w, axis_name="batch"))(s)

  split = [x.reshape(3, 2, *x.shape[1:]) for x in (s, t, y, weights)]
  values, slopes = jit(jax.vmap(shard, axis_name="batch"))(*split)
  value, slope = compiled(kernel)(s, t, y, weights)
  np.testing.assert_allclose(values.mean(), value, rtol=1e-5)
  np.testing.assert_allclose(slopes.reshape(s.shape) / 3, slope, rtol=1e-4, atol=1e-7)
