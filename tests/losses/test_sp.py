"""SP: definition, invariances, zero vectors, and the global batch over devices with a mask."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.errors import ConfigError
from jaxkd.losses import similarity_mse, similarity_preserving
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.partial(jit, static_argnames="row_norm")
def compute(student, teacher, row_norm="l2"):
  return jax.value_and_grad(functools.partial(similarity_mse, row_norm=row_norm))(student, teacher)


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


def expected(student, teacher, order=2):
  """The loss by the paper's formula."""

  def similarities(x):
    x = x.reshape(len(x), -1).astype("float64")
    gram = x @ x.T
    return gram / np.maximum(np.linalg.norm(gram, ord=order, axis=1, keepdims=True), 1e-12)

  return ((similarities(teacher) - similarities(student)) ** 2).sum() / len(student) ** 2


@pytest.mark.parametrize(("row_norm", "order"), [("l2", 2), ("l1", 1)])
# With values below 1e-6, the bound of a norm counts.
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-6, 1e-7, 1e6])
def test_loss_equals_the_definition(row_norm, order, scale):
  s, t = np.float32(scale) * draw(6, 2, 2, 3), draw(6, 5, seed=1)
  value, _ = compute(s, t, row_norm)
  np.testing.assert_allclose(value, expected(s, t, order), rtol=1e-5)


@given(
  st.integers(0, 2**16),
  st.sampled_from(["student", "teacher"]),
  st.floats(0.0625, 16),
)
def test_similarities_ignore_rotation_and_scale_of_either_side(seed, side, scale):
  arrays = {"student": draw(6, 4, seed=seed), "teacher": draw(6, 4, seed=seed + 1)}
  rotation, _ = np.linalg.qr(draw(4, 4, seed=seed + 2))
  turned = arrays | {side: np.float32(scale) * (arrays[side] @ rotation)}
  np.testing.assert_allclose(compute(**turned)[0], compute(**arrays)[0], rtol=1e-4, atol=1e-7)


def test_similarities_do_not_ignore_translation():
  x = draw(6, 4)
  assert compute(x, x)[0] == 0 and compute(x + 1, x)[0] > 1e-3


def test_zero_vector_has_no_similarity_and_the_gradient_of_the_other_rows():
  s, t = draw(6, 4), draw(6, 4, seed=1)
  s[2] = 0
  value, gradient = compute(s, t)
  np.testing.assert_allclose(value, expected(s, t), rtol=1e-5)
  # The similarities of the other samples to this one are not at a bound. Published code adds the
  # gradient of a division by 1e-12 for its own row.
  assert gradient[2].any() and np.abs(gradient).max() < 1


def test_loss_sums_stages_of_different_shapes_by_their_weights():
  s = Output(features={"a": draw(4, 3), "b": draw(4, 2, 2, 3)})
  t = Output(features={"a": draw(4, 2, seed=1), "c": draw(4, 5, 5, 2, seed=2)})
  terms = similarity_preserving(s, t, stages=["a", ("b", "c")], stage_weights=[2.0, 3.0])
  wanted = 2 * expected(s.features["a"], t.features["a"])
  wanted += 3 * expected(s.features["b"], t.features["c"])
  np.testing.assert_allclose(terms.feature, wanted, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradient_on_four_devices_equal_the_global_batch(masked):
  weights, inputs, targets = draw(4, 3), draw(12, 4, seed=1), draw(12, 5, seed=2)
  where = np.arange(12) < (7 if masked else 12)  # the last device may have none that count
  inputs[~where] = targets[~where] = np.nan

  def gradient(weights, inputs, targets, where, axis_name):
    def loss(weights):
      mask = where if masked else None
      return similarity_mse(inputs @ weights, targets, axis_name=axis_name, where=mask)

    value, slope = jax.value_and_grad(loss)(weights)
    return value, slope if axis_name is None else jax.lax.pmean(slope, axis_name)

  step = functools.partial(gradient, axis_name="batch")
  split = [x.reshape(4, 3, *x.shape[1:]) for x in (inputs, targets, where)]
  # A masked input is zero times its gradient of NaN in `inputs @ weights`: zeros in their place.
  split[0] = np.nan_to_num(split[0])
  found = jit(jax.vmap(step, axis_name="batch", in_axes=(None, 0, 0, 0)))(weights, *split)
  whole = functools.partial(gradient, axis_name=None)
  wanted = jit(whole)(weights, *(x[where] for x in (inputs, targets, where)))
  for one, other in zip(found, wanted, strict=True):
    np.testing.assert_allclose(one, np.broadcast_to(other, one.shape), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  ("student", "teacher", "options", "message"),
  [
    ((2, 3), (2, 3), {"row_norm": "l3"}, "unknown row_norm 'l3': known: l1, l2"),
    ((2, 3), (3, 3), {}, r"student \(2, 3\) and teacher \(3, 3\) differ in batch size"),
    ((2,), (2, 3), {}, r"student \(2,\) is not \(B, ...\)"),
  ],
)
def test_error_for_wrong_arguments_names_them(student, teacher, options, message):
  s, t = (Output(features={"stage3": jnp.ones(shape)}) for shape in (student, teacher))
  with pytest.raises(ConfigError, match=message):
    similarity_preserving(s, t, **options)
