import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.evaluate import exit_costs, multiply_adds
from tests.evaluate.blocks import SHAPE, Blocks, variables


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


def convolution(groups):
  module = nn.Conv(6, (3, 3), strides=2, feature_group_count=groups)
  images = shape(2, 8, 8, 4)
  return multiply_adds(module.apply, jax.eval_shape(module.init, jax.random.key(0), images), images)


def test_convolution_counts_its_kernel_at_every_output():
  assert convolution(groups=1) == 2 * (4 * 4) * 6 * (3 * 3 * 4)


def test_grouped_convolution_counts_its_share_of_the_channels():
  assert convolution(groups=2) == 2 * (4 * 4) * 6 * (3 * 3 * 2)


def test_batched_product_counts_one_multiply_add_per_contracted_element():
  assert multiply_adds(
    lambda a, b: jnp.einsum("bij,bjk->bik", a, b), shape(5, 2, 3), shape(5, 3, 7)
  ) == (5 * 2 * 3 * 7)


def test_only_products_are_counted():
  assert multiply_adds(lambda x: nn.relu(x * x + 1).sum(), shape(8, 8)) == 0


def test_nested_calls_are_counted():
  matrix = shape(3, 3)
  once = 27
  product = jax.jit(jnp.matmul)
  assert multiply_adds(lambda a: product(jax.checkpoint(product)(a, a), a), matrix) == 2 * once

  def loop(a):
    return jax.lax.scan(lambda c, _: (c @ a, None), a, None, length=5)[0]

  def either(a):
    return jax.lax.cond(a[0, 0] > 0, lambda: a @ a @ a, lambda: a @ a)

  assert multiply_adds(loop, matrix) == 5 * once
  assert multiply_adds(either, matrix) == 2 * once


def test_operations_without_effect_on_results_are_not_counted():
  def function(a):
    _ = a @ a
    return a

  assert multiply_adds(function, shape(3, 3)) == 0


def test_loop_of_unknown_length_is_refused():
  def function(a):
    return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, a)

  with pytest.raises(ConfigError, match="unknown length"):
    multiply_adds(function, shape(3, 3))


def test_exit_costs_sum_blocks_and_classifiers():
  convolutions = [4 * 4 * 4 * 9 * 1, 2 * 2 * 4 * 9 * 4, 1 * 1 * 4 * 9 * 4]
  classifier = 4 * 3
  expected, total = [], 0
  for cost in convolutions:
    total += cost + classifier
    expected.append(total)
  assert exit_costs(Blocks(), variables(), SHAPE) == tuple(expected)


def test_last_exit_costs_as_much_as_the_whole_network():
  whole = multiply_adds(Blocks().apply, variables(), shape(1, *SHAPE))
  assert exit_costs(Blocks(), variables(), SHAPE)[-1] == whole
