"""FSP: flow matrices, their distances and the sum over stages."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxkd.errors import ConfigError
from jaxkd.losses import (
  adaptive_average_pool,
  adaptive_max_pool,
  flow_matrix,
  flow_of_solution,
  fsp_column_norm,
  fsp_mse,
)
from jaxkd.types import Output, Terms

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def random_arrays(*shapes, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=shape).astype("float32") for shape in shapes]


def network(*shapes, seed=0):
  """An Output with stages "0", "1", ... of the given shapes."""
  return Output(features={str(i): x for i, x in enumerate(random_arrays(*shapes, seed=seed))})


def test_flow_matrix_is_the_mean_product_over_positions():
  x, y = random_arrays((2, 2, 3, 3), (2, 2, 3, 4))
  expected = np.zeros((2, 3, 4))
  for b, i, j in np.ndindex(2, 3, 4):
    expected[b, i, j] = (x[b, ..., i].astype(float) * y[b, ..., j]).mean()
  np.testing.assert_allclose(jit(flow_matrix)(x, y), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", ["average", "max"])
def test_larger_layer_is_pooled_to_the_smaller(pool):
  @jit
  def flows(x, y):
    small = {"average": adaptive_average_pool, "max": adaptive_max_pool}[pool](x, 3, 2)
    return [
      (flow_matrix(x, y, pool=pool), flow_matrix(small, y)),
      (flow_matrix(y, x, pool=pool), flow_matrix(y, small)),
    ]

  for flow, expected in flows(*random_arrays((2, 6, 4, 3), (2, 3, 2, 4))):
    np.testing.assert_allclose(flow, expected, rtol=1e-5, atol=1e-6)


def test_each_axis_is_pooled_to_the_smaller_size():
  high, wide = np.ones((1, 4, 2, 1)), np.arange(8.0).reshape(1, 2, 4, 1)
  # The maxima of the pairs (0, 1), (2, 3), (4, 5), (6, 7) of a row are 1, 3, 5, 7.
  assert jit(functools.partial(flow_matrix, pool="max"))(high, wide).item() == 4.0


FIRST, SECOND = (
  hnp.arrays(np.int8, (2, 2, 3, c), elements=st.integers(-40, 40)).map(
    lambda x: x.astype(np.float32) / 4
  )
  for c in (3, 2)
)


@jit
def mse_and_gradient(first, second, teacher):
  def loss(first, second):
    return fsp_mse(flow_matrix(first, second), teacher)

  return jax.value_and_grad(loss, argnums=(0, 1))(first, second)


@given(FIRST, SECOND, st.permutations(range(6)))
def test_fsp_ignores_the_order_of_positions(first, second, order):
  def shuffled(x):
    return x.reshape(2, 6, -1)[:, order].reshape(x.shape)

  teacher = np.ones((2, 3, 2), np.float32)
  np.testing.assert_allclose(
    mse_and_gradient(shuffled(first), shuffled(second), teacher)[0],
    mse_and_gradient(first, second, teacher)[0],
    rtol=1e-5,
    atol=1e-6,
  )


def test_fsp_changes_if_one_layer_is_shifted():
  x = np.eye(4, dtype="float32").reshape(1, 2, 2, 4)
  flow, moved = jit(flow_matrix)(x, x), jit(flow_matrix)(x, np.roll(x, 1, axis=1))
  np.testing.assert_allclose(fsp_mse(moved, flow), 8 / 16 / 16)


@jit
def every_variant(student, teacher):
  """Value and gradient of the loss with every pool and norm."""

  def loss(student, **options):
    return flow_of_solution(student, teacher, stages=["0", "1"], **options).total

  return {
    (pool, norm): jax.value_and_grad(functools.partial(loss, pool=pool, norm=norm))(student)
    for pool in ("average", "max")
    for norm in ("mse", "columns")
  }


@pytest.mark.parametrize("fill", [0.0, 1.0, -1e4])
def test_constant_maps_give_finite_gradients(fill):
  some = network((2, 5, 5, 6), (2, 3, 3, 4))
  constant = jax.tree.map(lambda x: np.full_like(x, fill), some)
  for teacher in (some, constant):
    chex.assert_tree_all_finite(every_variant(constant, teacher))


def test_value_and_gradient_are_zero_for_equal_networks():
  x = network((2, 5, 5, 6), (2, 3, 3, 4))
  for variant, (value, gradient) in every_variant(x, x).items():
    assert value < 1e-12, variant
    assert max(np.abs(g).max() for g in jax.tree.leaves(gradient)) < 1e-7, variant


def test_kernels_equal_their_definitions():
  s, t = random_arrays((2, 3, 4), (2, 3, 4))
  gap = s.astype(float) - t
  mse, norms = jit(lambda s, t: (fsp_mse(s, t), fsp_column_norm(s, t)))(s, t)
  np.testing.assert_allclose(mse, (gap**2).sum() / 24, rtol=1e-5)
  columns = sum(np.sqrt((gap[b, :, j] ** 2).sum()) for b in range(2) for j in range(4))
  np.testing.assert_allclose(norms, columns / 2, rtol=1e-5)


def test_columns_equal_up_to_rounding_have_zero_gradient():
  t = np.ones((1, 3, 2), np.float32)
  s = t.copy()
  s[0, 0] = 1 + 1e-6, 1 + 1e-5
  gradient = jit(jax.grad(fsp_column_norm))
  np.testing.assert_allclose(gradient(s, t)[0], [[0, 1], [0, 0], [0, 0]], atol=1e-6)
  # Beside a teacher's column of zeros no difference is rounding.
  assert jnp.abs(gradient(np.float32(1e-10) * s, 0 * t)).max() > 0.1


def test_flows_of_adjacent_stages_are_weighted_and_summed():
  @jit
  def both(student_maps, teacher_maps):
    student = Output(features=dict(zip("012", student_maps, strict=True)))
    teacher = Output(features=dict(zip("abc", teacher_maps, strict=True)))
    terms = functools.partial(
      flow_of_solution, student, teacher, stages=[("0", "a"), ("1", "b"), ("2", "c")]
    )
    first, second = (
      fsp_mse(
        flow_matrix(student_maps[i], student_maps[i + 1]),
        flow_matrix(teacher_maps[i], teacher_maps[i + 1]),
      )
      for i in (0, 1)
    )
    return [
      (terms(), first + second),
      (terms(stage_weights=[2.0, 0.5]), 2 * first + second / 2),
    ]

  student_maps = random_arrays((2, 4, 4, 3), (2, 4, 4, 2), (2, 2, 2, 5), seed=1)
  teacher_maps = random_arrays((2, 3, 3, 3), (2, 2, 2, 2), (2, 2, 2, 5))
  for terms, expected in both(student_maps, teacher_maps):
    assert isinstance(terms, Terms) and terms.logit == 0
    np.testing.assert_allclose(terms.feature, expected, rtol=1e-6)


def test_loss_passes_its_options_to_the_kernels():
  @jit
  def both(s, t):
    outputs = [Output(preactivations=x.features) for x in (s, t)]
    options = {"stages": ["0", "1"], "pool": "max", "arrays": "preactivations"}
    matrices = [flow_matrix(*x.preactivations.values(), pool="max") for x in outputs]
    return [
      (flow_of_solution(*outputs, norm=norm, **options).feature, kernel(*matrices))
      for norm, kernel in (("mse", fsp_mse), ("columns", fsp_column_norm))
    ]

  for value, expected in both(*(network((2, 4, 4, 3), (2, 2, 2, 2), seed=i) for i in (0, 1))):
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_error_for_different_channels_names_stage_shapes_and_remedy():
  s, t = network((2, 4, 4, 3), (2, 2, 2, 5)), network((2, 4, 4, 3), (2, 2, 2, 7))
  message = r"stage '1': .*student \(2, 2, 2, 5\) and teacher \(2, 2, 2, 7\).*adapter"
  with pytest.raises(ConfigError, match=message):
    jax.eval_shape(functools.partial(flow_of_solution, stages=["0", "1"]), s, t)
  with pytest.raises(ConfigError, match=r"stages '1' and '0': .* differ in channels"):
    flow_of_solution(s, t, stages=[("0", "0"), ("1", "0")])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"norm": "column"}, "unknown norm 'column': did you mean 'columns'"),
    ({"pool": "mean"}, "unknown pool 'mean': known: average, max"),
    ({"stages": ["0"]}, "a flow goes between two stages"),
    ({"stages": ["0", "x"]}, "unknown student stage 'x'"),
    ({"stage_weights": [1.0, 1.0]}, "stage_weights are 2, flows between stages 1"),
    ({"stages": ["0", "2"]}, r"stage '2': .*student \(2, 3\) is not a feature map"),
  ],
)
def test_wrong_options_raise_an_error_that_names_them(options, message):
  x = network((2, 2, 2, 1), (2, 2, 2, 1), (2, 3))
  with pytest.raises(ConfigError, match=message):
    flow_of_solution(x, x, **({"stages": ["0", "1"]} | options))


@pytest.mark.parametrize(
  ("kernel", "shapes", "message"),
  [
    (flow_matrix, ((2, 3), (2, 2, 2, 3)), r"first \(2, 3\) is not a feature map"),
    (flow_matrix, ((2, 2, 2, 3), (1, 2, 2, 3)), r"first \(2, .*second \(1, .* batch size"),
    (fsp_mse, ((2, 3, 4), (2, 3, 5)), r"student \(2, 3, 4\) and teacher \(2, 3, 5\)"),
    (fsp_column_norm, ((2, 3, 4), (2, 3, 5)), r"student \(2, 3, 4\) and teacher \(2, 3, 5\)"),
    (fsp_column_norm, ((3, 4), (3, 4)), r"student \(3, 4\) is not a flow matrix"),
  ],
)
def test_error_for_incompatible_shapes_names_them(kernel, shapes, message):
  with pytest.raises(ConfigError, match=message):
    kernel(*random_arrays(*shapes))
