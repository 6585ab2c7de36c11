"""A compiled float32 loss behind a network agrees with the float64 one, for every batch size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from tests.numerics.behind_a_network import (
  BATCH_SIZES,
  CASES,
  OPTIMISED,
  SCALES,
  cast,
  disagreement,
  draw,
  program,
  reference,
)

RELATIONAL = tuple(name for name in CASES if name.startswith("relational"))
# The compiler contracts the pooling at most batch sizes; 8 is one of those where it does not.
OFTEN = (4,)
# float32 is exact to 6e-8.
FLOAT32, BFLOAT16 = 1e-7, 4e-3


def compare(batch_size, names, scales=SCALES, vmapped=False):
  """The disagreements, for random images and for a batch with duplicates."""
  run = program(names, options=OPTIMISED, vmapped=vmapped)
  wrong = []
  for duplicates in (False, True):
    drawn = draw(batch_size, duplicates=duplicates)
    if vmapped:
      stacked = jax.tree.map(lambda x: np.stack([x] * len(scales)), drawn)
      every = jax.device_get(run(*stacked, np.array(scales, "float32")))
      results = [jax.tree.map(lambda x, i=i: x[i], every) for i in range(len(scales))]
    else:
      results = [jax.device_get(run(*drawn, np.float32(scale))) for scale in scales]
    for scale, found in zip(scales, results, strict=True):
      wanted = reference(names, drawn, scale)
      wrong += [disagreement(name, found[name], wanted[name], scale) for name in names]
  return [f"B={batch_size}: {words}" for words in wrong if words]


@pytest.mark.long
@pytest.mark.parametrize("batch_size", OFTEN)
def test_every_loss_agrees_with_float64(batch_size):
  assert not compare(batch_size, tuple(CASES))


@pytest.mark.numerics
@pytest.mark.parametrize("batch_size", [size for size in BATCH_SIZES if size not in OFTEN])
def test_every_loss_agrees_with_float64_at_every_batch_size(batch_size):
  assert not compare(batch_size, tuple(CASES))


@pytest.mark.long
@pytest.mark.parametrize("batch_size", [2, 16])
def test_relations_agree_with_float64(batch_size):
  assert not compare(batch_size, RELATIONAL)


@pytest.mark.numerics
@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_every_loss_agrees_with_float64_under_vmap(batch_size):
  assert not compare(batch_size, tuple(CASES), vmapped=True)


@pytest.mark.long
def test_relations_agree_with_float64_in_bfloat16():
  assert not compare_in_bfloat16(4, RELATIONAL)


@pytest.mark.long
def test_relations_agree_with_float64_under_vmap():
  assert not compare(5, RELATIONAL, vmapped=True)


@pytest.mark.parametrize(
  "batch_size", [pytest.param(b, marks=pytest.mark.numerics) for b in (1, 2, 3, 4, 5, 16, 17)]
)
def test_every_loss_agrees_with_float64_in_bfloat16(batch_size):
  assert not compare_in_bfloat16(batch_size, tuple(CASES))


def compare_in_bfloat16(batch_size, names):
  """The disagreements that exceed the resolution of the network itself."""
  drawn = cast(cast(draw(batch_size), jnp.bfloat16), "float32")
  run = program(names, options=OPTIMISED)
  narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype.kind == "f" else x, drawn)
  found = jax.device_get(run(*narrow, jnp.bfloat16(1.0)))
  wanted = reference(names, drawn, 1.0)
  wrong = []
  for name in names:
    value, gradient = found[name]
    gradient = cast(gradient, "float64")
    wrong.append(disagreement(name, (value, gradient), wanted[name], 1.0, BFLOAT16 / 30))
  return [words for words in wrong if words]


@pytest.mark.parametrize("batch_size", [4])
def test_the_angle_behind_a_pooled_layer_has_the_value_and_gradient_that_it_has_without_jit(
  batch_size,
):
  rng = np.random.default_rng(0)
  images, weights, teacher = (
    jnp.asarray(rng.normal(size=shape), jnp.float32)
    for shape in ((batch_size, 6, 6, 3), (3, 8), (batch_size, 16))
  )

  def loss(weights):
    return losses.angle_huber(jax.nn.relu(images @ weights).mean((1, 2)), teacher)

  compiled = functools.partial(jax.jit, compiler_options=OPTIMISED)
  np.testing.assert_allclose(compiled(loss)(weights), loss(weights), rtol=1e-5, atol=1e-10)
  np.testing.assert_allclose(
    compiled(jax.grad(loss))(weights), jax.grad(loss)(weights), rtol=1e-3, atol=1e-6
  )


@pytest.mark.parametrize("scale", [1e-14, 1e-16, 1e-18])
def test_a_collapsed_student_has_finite_angles(scale):
  rng = np.random.default_rng(0)
  student, teacher = (rng.normal(size=(6, 5)).astype("float32") for _ in range(2))
  run = jax.jit(jax.value_and_grad(losses.angle_huber), compiler_options=OPTIMISED)
  value, gradient = run(np.float32(scale) * student, teacher)
  expected, slope = run(student, teacher)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(gradient * np.float32(scale), slope, rtol=1e-3, atol=1e-7)
