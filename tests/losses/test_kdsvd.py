"""KD-SVD: definition, gradients of singular vectors, equal and zero singular values, signs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.losses import aligned_singular_vectors, singular_value_distillation
from jaxkd.losses._singular import right_singular_vectors
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def draw(*shape, seed=0, dtype="float32"):
  return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@functools.partial(jit, static_argnames="count")
def compute(student, teacher, count=1):
  def loss(student):
    outputs = (Output(features=x) for x in (student, teacher))
    return singular_value_distillation(*outputs, stages=list("ab"), count=count).total

  return jax.value_and_grad(loss)(student)


def expected(student, teacher, count):
  """The loss by its definition, in numpy."""

  def decomposed(x):
    x = x.reshape(-1, x.shape[-1]).astype("float64")
    _, s, vt = np.linalg.svd(x, full_matrices=False)
    return x, s, vt.T

  def aligned(s, t):
    _, _, v = decomposed(s)
    x, values, u = decomposed(t)
    u, v, values = u[:, :count], v[:, : count + 3], values[:count]
    u = u * np.sign((x @ u * np.abs(x @ u)).sum(0))
    cosines = v.T @ u
    best = np.abs(cosines).argmax(0)
    v = v[:, best] * np.sign(cosines[best, range(u.shape[1])])
    weights = values / np.linalg.norm(values)
    return v * weights, u * weights

  total = 0.0
  for i in range(len(student["a"])):
    first, second = (aligned(student[x][i], teacher[x][i]) for x in "ab")
    ours, theirs = (
      np.exp(-((v[:, None] - u[None]) ** 2) / 8) for v, u in zip(second, first, strict=True)
    )
    total += ((ours - theirs) ** 2).sum()
  return total / len(student["a"])


def maps(seed, scale=1.0):
  shapes = {"a": (3, 3, 2, 4), "b": (3, 1, 2, 5)}
  return {x: np.float32(scale) * draw(*shapes[x], seed=seed + i) for i, x in enumerate("ab")}


@pytest.mark.parametrize("scale", [1.0, 1e8, 1e-18])
@pytest.mark.parametrize("count", [1, 2])
def test_loss_equals_the_definition_at_any_scale(count, scale):
  s, t = maps(0, scale), maps(7)
  value, gradient = compute(s, t, count)
  np.testing.assert_allclose(value, expected(s, t, count), rtol=1e-4)
  assert all(np.isfinite(x).all() and x.any() for x in jax.tree.leaves(gradient))


def test_loss_is_0_at_equality_and_ignores_signs_and_scale():
  s, t = maps(0), maps(7)
  value, _ = compute(s, t)
  assert compute(t, t)[0] == 0 and value > 1e-4
  np.testing.assert_allclose(compute(jax.tree.map(lambda x: -3 * x, s), t)[0], value, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 6, 4), (2, 4, 4), (2, 3, 6)])
def test_gradient_of_singular_vectors_equals_finite_differences(shape):
  with jax.enable_x64(True):
    x, direction = draw(*shape, dtype="float64"), draw(*shape, seed=1, dtype="float64")
    weights = draw(shape[0], shape[2], 2, seed=2, dtype="float64")

    @jit
    def slopes(x, direction):
      def loss(x):
        v = right_singular_vectors(x, 2)
        # The sign of a vector must not matter.
        return jnp.sum(jnp.square(jnp.sum(weights * v, axis=1)))

      steps = jnp.array([1e-6, -1e-6])[:, None, None, None] * direction[None]
      up, down = jax.vmap(lambda step: loss(x + step))(steps)
      return jnp.vdot(jax.grad(loss)(x), direction), (up - down) / 2e-6

    exact, finite = slopes(x, direction)
    np.testing.assert_allclose(exact, finite, rtol=1e-6)


@pytest.mark.parametrize("kind", ["zero", "equal values", "rank 1", "equal rows"])
def test_gradient_is_finite_for_equal_and_zero_singular_values(kind):
  s, t = maps(0), maps(7)
  s["a"] = {
    "zero": 0 * s["a"],
    "equal values": np.broadcast_to(np.eye(6, 4, dtype="float32").reshape(3, 2, 4), s["a"].shape),
    "rank 1": s["a"][:, :1, :1] * np.arange(1, 7, dtype="float32").reshape(3, 2, 1),
    "equal rows": np.broadcast_to(s["a"][:, :1, :1], s["a"].shape),
  }[kind]
  for ours, theirs in ((s, t), (s, s), (t, s)):
    value, gradient = compute(ours, theirs, 2)
    assert np.isfinite(value)
    assert all(np.abs(x).max() < 1e3 for x in jax.tree.leaves(gradient))


def test_directions_turn_the_teachers_vectors():
  s, t = draw(2, 3, 3, 4), draw(2, 2, 2, 4, seed=1)
  vectors = jit(functools.partial(aligned_singular_vectors, count=2))
  _, found = vectors(s, t)
  ours, turned = vectors(s, t, directions=-found)
  np.testing.assert_allclose(turned, -found, rtol=1e-5)
  assert (np.sum(ours * turned, axis=1) > 0).all()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"stages": ["a"]}, "two adjacent ones are compared, name at least two"),
    ({"stage_weights": [1.0, 1.0]}, "stage_weights are 2: expected 1 for 2 stages"),
    ({"directions": [1.0]}, "directions are 1: expected 2 for 2 stages"),
    ({"count": 0}, "stage 'a': count is 0: expected 1 or more"),
    ({"layout": "rows"}, "stage 'a': unknown layout 'rows'"),
    ({"layout": "columns"}, r"stage 'b': .*\(2, 4, 5, 3\) differ in columns"),
    ({}, r"stage 'a': .*teacher \(2, 4, 4, 5\) differ in channels"),
  ],
)
def test_error_for_wrong_arguments_names_them(options, message):
  s = Output(features={"a": jnp.ones((2, 4, 4, 3)), "b": jnp.ones((2, 4, 4, 3))})
  t = Output(features={"a": jnp.ones((2, 4, 4, 5)), "b": jnp.ones((2, 4, 5, 3))})
  with pytest.raises(ConfigError, match=message):
    loss = functools.partial(singular_value_distillation, **{"stages": ["a", "b"], **options})
    jax.eval_shape(loss, s, t)
