"""RKD: definitions, invariances, the global batch over devices, and memory."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxkd.errors import ConfigError
from jaxkd.losses import angle_huber, pairwise_distance_huber, relational
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def rkd(student, teacher, **options):
  s, t = (Output(features={"pooled": x}) for x in (student, teacher))
  return relational(s, t, **options).feature


@jit
def both(student, teacher):
  """Value and gradient of the distance and the angle kernel."""
  return [jax.value_and_grad(f)(student, teacher) for f in (pairwise_distance_huber, angle_huber)]


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


def plain(student, teacher):
  """The angle term by the paper's formula, over all triples at once."""

  def cosines(x):
    away = x[None] - x[:, None]
    squares = jnp.sum(away**2, axis=-1, keepdims=True)
    unit = away / jnp.sqrt(jnp.where(squares > 0, squares, jnp.inf))
    return jnp.einsum("ijd,ikd->ijk", unit, unit)

  gap = jnp.abs(cosines(student) - cosines(teacher))
  return jnp.mean(jnp.where(gap < 1, gap**2 / 2, gap - 0.5))


@pytest.mark.parametrize(("batch", "size"), [(2, 1), (7, None), (8, 3)])
def test_angles_in_blocks_equal_all_triples_at_once(batch, size):
  s, t = draw(batch, 3), draw(batch, 4, seed=1)

  @jit
  def compare(s, t):
    return [
      jax.value_and_grad(f)(s, t) for f in (functools.partial(angle_huber, block_size=size), plain)
    ]

  chex.assert_trees_all_close(*compare(s, t), rtol=1e-4, atol=1e-6)


def test_opposed_angles_are_in_the_linear_part_of_the_huber_loss():
  # Three samples on a line against a right angle: cosines 0 against 1, and 1 against 1/sqrt(2).
  line, bent = jnp.array([[0.0], [1.0], [-1.0]]), jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
  # The corner in the middle has -1 against 0, those at the ends 1 against 1/sqrt(2); each counts as
  # (j, k) and (k, j).
  expected = 2 * (0.5 + 2 * (1 - 0.5**0.5) ** 2 / 2) / 27
  np.testing.assert_allclose(both(line, bent)[1][0], expected, rtol=1e-5)
  # 180 against 0 degrees: the difference of 2 gives a Huber loss of 1.5.
  same = jnp.array([[0.0], [1.0], [2.0]])
  np.testing.assert_allclose(both(line, same)[1][0], 2 * (1.5 + 1.5) / 27, rtol=1e-5)


def test_distances_are_divided_by_their_mean_over_pairs():
  s, t = jnp.array([[0.0], [1.0], [3.0]]), jnp.array([[0.0], [1.0], [2.0]])
  # Distances 1, 2, 3 over their mean 2 against 1, 1, 2 over 4/3; each pair twice among 9.
  gaps = np.array([0.5 - 0.75, 1.0 - 0.75, 1.5 - 1.5])
  np.testing.assert_allclose(pairwise_distance_huber(s, t), (gaps**2).sum() / 9, rtol=1e-5)
  squares = np.array([1, 4, 9]) / (14 / 3) - np.array([1, 1, 4]) / 2
  actual = pairwise_distance_huber(s, t, squared=True, reduction="sum")
  np.testing.assert_allclose(actual, (squares**2).sum(), rtol=1e-5)


@given(
  st.integers(0, 2**16),
  st.sampled_from(["student", "teacher"]),
  st.floats(0.0625, 16),
  st.integers(-4, 4),
)
def test_relations_ignore_rotation_translation_and_scale_of_either_side(seed, side, scale, shift):
  arrays = {"student": draw(6, 4, seed=seed), "teacher": draw(6, 4, seed=seed + 1)}
  rotation, _ = np.linalg.qr(draw(4, 4, seed=seed + 2))
  moved = arrays | {side: np.float32(scale) * (arrays[side] @ rotation + np.float32(shift))}
  for (value, _), (expected, _) in zip(both(**moved), both(**arrays), strict=True):
    np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-6)


def test_value_and_gradient_are_zero_for_equal_sides():
  x = draw(6, 4)
  for value, gradient in both(x, x):
    assert value < 1e-12 and np.abs(gradient).max() < 1e-6


def test_relations_ignore_reflection_and_not_stretching_of_one_axis():
  x = draw(6, 4)
  assert all(value < 1e-9 for value, _ in both(x, x * np.float32([1, 1, 1, -1])))
  assert all(value > 1e-4 for value, _ in both(x, x * np.float32([1, 1, 1, -3])))


def test_duplicate_samples_give_finite_gradients():
  s, t = draw(6, 4), draw(6, 4, seed=1)
  s[1] = s[0]
  for value, gradient in both(s, t):
    assert np.isfinite(value) and np.abs(gradient).max() < 1
  expected = jit(jax.value_and_grad(plain))(s, t)
  chex.assert_trees_all_close(both(s, t)[1], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fill", [0.0, 1e4])
def test_equal_samples_have_zero_gradient(fill):
  point = np.full((6, 4), fill, np.float32)
  for teacher in (point, draw(6, 4)):
    for value, gradient in both(point, teacher):
      assert np.isfinite(value) and (gradient == 0).all()
  assert all(np.isfinite(gradient).all() for _, gradient in both(draw(6, 4), point))


def test_single_sample_gives_zero():
  for value, gradient in both(draw(1, 4), draw(1, 4, seed=1)):
    assert value == 0 and (gradient == 0).all()


def test_close_samples_are_accurate_in_float32():
  s, t = draw(6, 4), draw(6, 4, seed=1)
  s[1] = s[0] + 0.01 * s[1]
  single = both(s, t)
  with jax.enable_x64(True):
    double = jax.device_get(both(s.astype("float64"), t.astype("float64")))
  for (value, gradient), (expected, exact) in zip(single, double, strict=True):
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.abs(gradient - exact).max() < 1e-4 * np.abs(exact).max()


def test_forward_mode_agrees_with_the_gradient():
  s, t, direction = (draw(5, 3, seed=i) for i in range(3))

  @jit
  def slopes(s, t):
    _, forward = jax.jvp(lambda s: rkd(s, t), (s,), (direction,))
    return forward, jnp.vdot(jax.grad(rkd)(s, t), direction)

  np.testing.assert_allclose(*slopes(s, t), rtol=1e-4)


def test_loss_passes_weights_and_options_to_both_terms():
  s, t = draw(5, 2, 2, 2), draw(5, 3, seed=1)

  @jit
  def values(s, t):
    default = rkd(s, t)
    weighted = rkd(s, t, distance_weight=2.0, angle_weight=3.0, reduction="sum", block_size=2)
    squared = rkd(s, t, squared=True, angle_weight=0.0, stage_weights=[0.5])
    distance, angle = pairwise_distance_huber(s, t), angle_huber(s, t)
    return [
      (default, 25 * distance + 50 * angle),
      (weighted, 2 * 25 * distance + 3 * 125 * angle),
      (squared, 0.5 * 25 * pairwise_distance_huber(s, t, squared=True)),
    ]

  for actual, expected in values(s, t):
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_normalising_keeps_directions_and_zero_vectors(side):
  x = {"student": draw(5, 3), "teacher": draw(5, 3, seed=1)}
  x[side][2] = 0
  unit = x | {side: x[side] / np.maximum(np.linalg.norm(x[side], axis=1, keepdims=True), 1e-6)}
  scaled = x | {side: x[side] * np.float32([[1], [2], [3], [4], [5]])}
  options = {f"normalize_{side}": True, "angle_weight": 0.0}

  @jit
  def loss(student, teacher):
    normalised = functools.partial(rkd, **options)
    return *jax.value_and_grad(normalised)(student, teacher), rkd(student, teacher, angle_weight=0)

  value, gradient, without = loss(**scaled)
  np.testing.assert_allclose(value, loss(**unit)[2], rtol=1e-4)
  assert np.abs(gradient).max() < 1e3 and abs(value - without) > 1e-2


def test_term_of_weight_zero_is_not_computed():
  x = jnp.ones((4, 3))
  text = str(jax.make_jaxpr(functools.partial(rkd, angle_weight=0))(x, x))
  assert "sum_of_angle_hubers" not in text
  assert "sum_of_angle_hubers" in str(jax.make_jaxpr(rkd)(x, x))


WEIGHTS, INPUTS, TARGETS = draw(4, 3), draw(16, 4, seed=1), draw(16, 5, seed=2)


def per_device(weights, inputs, targets, axis_name="batch"):
  """Gradient of the local loss, averaged over devices, as in a training step."""
  value, gradient = jax.value_and_grad(lambda w: rkd(inputs @ w, targets, axis_name=axis_name))(
    weights
  )
  return value, jax.lax.pmean(gradient, "batch")


@functools.cache
def one_device():
  return jit(jax.value_and_grad(lambda w: rkd(INPUTS @ w, TARGETS)))(WEIGHTS)


def over_eight(transform, **options):
  """Value and averaged gradient on each of eight devices."""
  step = functools.partial(per_device, **options)
  split = [x.reshape(8, 2, -1) for x in (INPUTS, TARGETS)]
  if transform == "pmap":
    return jax.pmap(step, "batch", in_axes=(None, 0, 0))(WEIGHTS, *split)
  if transform == "vmap":
    return jit(jax.vmap(step, axis_name="batch", in_axes=(None, 0, 0)))(WEIGHTS, *split)
  mesh = jax.make_mesh((8,), ("batch",), (AxisType.Auto,))
  mapped = jax.shard_map(
    lambda *args: jax.tree.map(lambda x: x[None], step(*args)),
    mesh=mesh,
    in_specs=(P(), P("batch"), P("batch")),
    out_specs=P("batch"),
    check_vma=False,
  )
  return jit(mapped)(WEIGHTS, INPUTS, TARGETS)


@pytest.mark.parametrize("transform", ["pmap", "shard_map", "vmap"])
def test_value_and_gradient_on_eight_devices_equal_the_global_batch(transform):
  expected = jax.tree.map(lambda x: np.broadcast_to(x, (8, *x.shape)), one_device())
  chex.assert_trees_all_close(over_eight(transform), expected, rtol=1e-5, atol=1e-5)


def test_relations_without_an_axis_stay_within_each_device():
  value, _ = over_eight("vmap", axis_name=None)
  own = pairwise_distance_huber(INPUTS[6:8] @ WEIGHTS, TARGETS[6:8])
  np.testing.assert_allclose(value[3], 25 * own, atol=1e-5)
  assert abs(value.mean() - one_device()[0]) > 0.1


def test_memory_is_quadratic_in_the_batch():
  batch = 256
  x = jax.ShapeDtypeStruct((batch, 64), jnp.float32)
  memory = jit(jax.value_and_grad(rkd)).lower(x, x).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 40 * 4 * batch**2 < 4 * batch**3 / 6


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"reduction": "men"}, "unknown reduction 'men': did you mean 'mean'"),
    ({"block_size": 0}, "block_size is 0"),
    ({"stages": ["y"]}, "unknown student stage 'y'"),
  ],
)
def test_wrong_options_raise_an_error_that_names_them(options, message):
  with pytest.raises(ConfigError, match=message):
    rkd(jnp.ones((2, 3)), jnp.ones((2, 3)), **options)


@pytest.mark.parametrize(("student", "teacher"), [((2, 3), (3, 3)), ((2,), (2, 3))])
def test_error_for_incompatible_shapes_names_the_stage(student, teacher):
  with pytest.raises(ConfigError, match=r"stage 'pooled': relational: .*student \(2,"):
    rkd(jnp.ones(student), jnp.ones(teacher))
