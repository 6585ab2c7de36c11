"""Values found to be per example depend on no other example and not on the place in the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxkd.cache.split import split_loss
from tests.cache.split_losses import (
  assert_close,
  batch_of,
  context,
  normal,
  participants_of,
  scheme_of,
)
from tests.methods.one_step import jit

# All axes have this length: the examples' axis cannot be recognised by its size.
N = 3


def split(function, *targets, operations_per_byte=1):
  """Split w * function(targets); bytes are cheap, so that the first part is as long as possible."""
  scheme = scheme_of(lambda learned, seen, _: jnp.sum(learned["w"] * function(*seen)))
  participants = participants_of({"w": jnp.float32(1.5)})
  found = split_loss(
    scheme, participants, batch_of(targets), context(), operations_per_byte=operations_per_byte
  )
  return found, scheme, participants


KEEP = {
  "elementwise": lambda x: jnp.exp(x) + 2.0 * jnp.tanh(x) ** 2,
  "by a constant of the other axes": lambda x: x * np.arange(9.0).reshape(1, 3, 3),
  "sum": lambda x: jnp.sum(x, 2),
  "largest": lambda x: jnp.max(x, (1, 2)),
  "argmax": lambda x: jnp.argmax(x, 1),
  "softmax": lambda x: jax.nn.softmax(x),
  "variance": lambda x: jnp.var(x, (1, 2)),
  "median": lambda x: jnp.sort(x, 1)[:, 1],
  "top": lambda x: lax.top_k(x, 2)[0],
  "running sum": lambda x: jnp.cumsum(x, 1),
  "mirrored": lambda x: x[:, :, ::-1],
  "sliced": lambda x: x[:, 1:, 0],
  "rolled": lambda x: jnp.roll(x, 1, 2),
  "padded": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0)), constant_values=7.0),
  "transposed": lambda x: jnp.exp(jnp.transpose(x, (2, 0, 1))),
  "reshaped": lambda x: jnp.transpose(x.reshape(3, -1)),
  "joined": lambda x: jnp.concatenate([x, jnp.zeros((3, 1, 3)), x], 1),
  "product with a constant": lambda x: jnp.einsum("bij,jk->kbi", x, np.ones((3, 3))),
  "product with itself": lambda x: jnp.einsum("bij,bkj->ikb", x, x),
  "outer difference": lambda x: jnp.abs(x[:, :, None] - x[:, None]),
  "chosen places": lambda x: jnp.take(x, np.array([2, 0]), axis=1),
  "own places": lambda x: jnp.take_along_axis(x, jnp.argsort(x, 2), 2),
  "convolved": lambda x: lax.conv(x[:, None], jnp.ones((2, 1, 2, 2)), (1, 1), "SAME"),
  "pooled": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2), (1, 1, 1), "VALID"),
  "jit": jax.jit(lambda x: jnp.sum(jnp.square(x), 1)),
  "checkpoint": jax.checkpoint(lambda x: jnp.sin(jnp.sin(x))),
  "custom rule": lambda x: jax.nn.relu(x) + jax.nn.silu(x),
  "where": lambda x: jnp.where(x > 0, x, 1.0) + jnp.clip(x, -1.0, 1.0),
  "stopped": lambda x: lax.stop_gradient(x) / 2,
}


@pytest.mark.parametrize("name", KEEP)
def test_per_example_operations_are_precomputed(name):
  # If everything up to the sum is precomputed, one number per example is stored.
  found, *_ = split(lambda x: jnp.sum(KEEP[name](x) * 1.0), normal(N, 3, 3))
  assert [s.shape for s in found.stored] == [(N,)]


def test_both_parts_of_per_example_operations_give_the_whole():
  x = normal(N, 3, 3)
  batch, context_ = batch_of((x,)), context()
  parts = {name: split(lambda x, f=f: jnp.sum(f(x) * 1.0), x) for name, f in KEEP.items()}

  @jit
  def from_cache(stored):
    return {
      name: found.loss_from_cache(
        {"student": {"w": jnp.float32(1.5)}}, people, batch, stored[name], context_
      )
      for name, (found, _, people) in parts.items()
    }

  stored = jit(lambda x: {name: found.precompute((x,)) for name, (found, *_) in parts.items()})(x)
  whole = jit(lambda x: {name: 1.5 * jnp.sum(f(x) * 1.0) for name, f in KEEP.items()})(x)
  assert_close({name: value for name, (value, _) in from_cache(stored).items()}, whole, 2e-6)


def _by_place(x):
  return x * jnp.arange(3.0)[:, None, None]


MIX = {
  "sum": lambda x: jnp.sum(x, 0, keepdims=True) + x,
  "softmax": lambda x: jax.nn.softmax(x, 0),
  "sort": lambda x: jnp.sort(x, 0),
  "reverse": lambda x: x[::-1],
  "running sum": lambda x: jnp.cumsum(x, 0),
  "roll": lambda x: jnp.roll(x, 1, 0),
  "slice": lambda x: jnp.pad(x[1:], ((0, 1), (0, 0), (0, 0))),
  "stride": lambda x: x[::2],
  "gather": lambda x: x[np.array([2, 0, 1])],
  "own place": _by_place,
  "place in a jit": jax.jit(_by_place),
  "a constant of the examples": lambda x: x + np.arange(27.0).reshape(3, 3, 3),
  "joined": lambda x: jnp.concatenate([x, x], 0),
  "merged axes": lambda x: x.reshape(9, 3),
  "merged and apart": lambda x: x.reshape(27).reshape(3, 3, 3)[:, 0] * x.reshape(9, 3)[:3],
  "across": lambda x: x + jnp.transpose(x, (1, 0, 2)),
  "differences of pairs": lambda x: x[:, None] - x[None],
  "products of pairs": lambda x: jnp.einsum("aij,bij->ab", x, x),
  "contracted": lambda x: jnp.einsum("aij,ka->kij", x, np.ones((3, 3))),
  "batch of a constant": lambda x: jnp.einsum("aij,aj->ai", x, np.arange(9.0).reshape(3, 3)),
  "convolved": lambda x: lax.conv(x[None], jnp.ones((3, 3, 2, 2)), (1, 1), "SAME"),
  "pooled": lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 1, 1), (1, 1, 1), "SAME"),
  "random": lambda x: x + jax.random.normal(jax.random.key(0), x.shape),
  "loop": lambda x: lax.scan(lambda c, row: (c + row, c), jnp.zeros((3, 3)), x)[1],
  "mapped": lambda x: lax.map(jnp.sin, x),
}


@pytest.mark.parametrize("name", MIX)
def test_operations_that_mix_examples_are_not_precomputed(name):
  x = normal(N, 3, 3)

  def function(x):
    rows = jnp.sum(x, 2, keepdims=True) + jnp.zeros((1, 1, 3))
    # If taken for per example, one number per example would be stored.
    return jnp.sum(jnp.sin(MIX[name](rows)))

  found, *_ = split(function, x)
  assert [s.shape for s in found.stored] == [(N, 3, 1)]


def _axis(draw, x):
  return draw(st.integers(0, x.ndim - 1))


def _plus_places(draw, x):
  axis = _axis(draw, x)
  return lambda x: x + jnp.expand_dims(jnp.arange(3.0), [a for a in range(x.ndim) if a != axis])


def _along(function):
  def build(draw, x):
    axis = _axis(draw, x)
    return lambda x: function(x, axis)

  return build


def _moved(draw, x):
  order = draw(st.permutations(range(x.ndim)))
  return lambda x: jnp.transpose(x, order)


def _product(draw, x):
  if x.ndim != 2:
    return lambda x: x
  formula = draw(
    st.sampled_from(["ij,kj->ik", "ij,jk->ik", "ij,ik->jk", "ij,ij->ij", "ij,ik->ijk"])
  )
  return lambda x: jnp.einsum(formula, x, jnp.cos(x))


def _merged(draw, x):
  # After a shift between the reshapes the axes are different ones, of the same sizes.
  shift = draw(st.integers(0, 1))
  return lambda x: jnp.roll(x.reshape(-1), shift).reshape(x.shape)


STEPS = [
  lambda draw, x: jnp.sin,
  lambda draw, x: lambda x: jnp.where(x > 0, x, 0.1 * x),
  _plus_places,
  _moved,
  _product,
  _merged,
  _along(lambda x, axis: jnp.sort(x, axis)),
  _along(lambda x, axis: jnp.cumsum(x, axis)),
  _along(lambda x, axis: jnp.flip(x, axis)),
  _along(lambda x, axis: jnp.roll(x, 1, axis)),
  _along(lambda x, axis: jax.nn.softmax(x, axis)),
  _along(lambda x, axis: jnp.broadcast_to(jnp.max(x, axis, keepdims=True), x.shape)),
  _along(lambda x, axis: jnp.sum(x, axis) if x.ndim > 1 else x),
  _along(lambda x, axis: jnp.repeat(jnp.expand_dims(x, axis), 3, axis) if x.ndim < 3 else x),
  _along(lambda x, axis: jnp.concatenate([x, x], axis).take(jnp.array([4, 0, 2]), axis=axis)),
  _along(lambda x, axis: jnp.take_along_axis(x, jnp.argsort(x, axis), axis)),
]


@st.composite
def functions(draw):
  """A chain of operations on an array whose axes all have the same length."""
  x, steps = jax.ShapeDtypeStruct((N, 3, 3), jnp.float32), []
  for _ in range(draw(st.integers(1, 5))):
    step = draw(st.sampled_from(STEPS))(draw, x)
    steps.append(step)
    x = jax.eval_shape(step, x)

  def function(x):
    # The second part also uses every value in between.
    total = 0.0
    for step in steps:
      x = step(x)
      total = total + jnp.sum(jnp.cos(x))
    return total

  return function


def check_precomputed(function, order, seed):
  x, order = normal(N, 3, 3, seed=seed), np.array(order)
  found, scheme, participants = split(function, x)
  stored = found.precompute((x,))
  for one, other in zip(stored, found.precompute((x[order],)), strict=True):
    np.testing.assert_allclose(np.asarray(one)[order], other, rtol=1e-5, atol=1e-6)
  alone = np.where(np.arange(N)[:, None, None] == seed % N, x, normal(N, 3, 3, seed=seed + 1))
  for one, other in zip(stored, found.precompute((alone,)), strict=True):
    np.testing.assert_allclose(one[seed % N], other[seed % N], rtol=1e-5, atol=1e-6)
  learning = {"student": {"w": jnp.float32(1.5)}}
  got, _ = found.loss_from_cache(learning, participants, batch_of((x,)), stored, context())
  want, _ = scheme.loss(learning, participants, batch_of((x,)), (x,), context())
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@settings(max_examples=8)
@given(functions(), st.permutations(range(N)), st.integers(0, 100))
def test_precomputed_values_depend_on_one_example_alone(function, order, seed):
  check_precomputed(function, order, seed)


@pytest.mark.long
@settings(max_examples=150)
@given(functions(), st.permutations(range(N)), st.integers(0, 100))
def test_precomputed_values_of_many_functions_depend_on_one_example_alone(function, order, seed):
  check_precomputed(function, order, seed)
