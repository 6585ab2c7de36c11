"""OFD: margins and partial L2 by their definitions, and the weights of stages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.losses import batch_norm_margin, overhaul, partial_l2
from jaxkd.types import Output


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


def expected(s, t, margin):
  """The sum by the paper's formula, element by element."""
  total = 0.0
  for x, y, m in zip(s.ravel(), t.ravel(), np.broadcast_to(margin, t.shape).ravel(), strict=True):
    target = max(float(y), float(m))
    if x > target or target > 0:
      total += (float(x) - target) ** 2
  return total


@pytest.mark.parametrize("margin", [[-0.5, -0.1, 0.3], [0.0, 0.0, 0.0]])
def test_loss_equals_the_definition(margin):
  s, t = draw(3, 2, 2, 3), draw(3, 2, 2, 3, seed=1)
  sums = partial_l2(s, t, margin=jnp.array(margin), reduction="sum")
  np.testing.assert_allclose(sums, expected(s, t, margin), rtol=1e-5)
  found = [partial_l2(s, t, margin=jnp.array(margin), reduction=how) for how in ("batch", "mean")]
  np.testing.assert_allclose(found, [sums / 3, sums / s.size], rtol=1e-6)


def test_margin_is_the_mean_of_the_negative_values_of_a_normal_distribution():
  scale, bias = np.array([0.5, 1.0, -2.0]), np.array([0.3, -1.0, 2.0])
  x = np.random.default_rng(0).normal(size=(400_000, 1)) * scale + bias
  means = [column[column < 0].mean() for column in x.T]
  np.testing.assert_allclose(batch_norm_margin(scale, bias), means, rtol=0.01)


def test_margin_where_negative_values_are_rare_or_impossible():
  scale, bias = np.array([0.25, 1.0, 0.0, 0.0]), np.array([1.0, 1e4, 2.0, -2.0])
  np.testing.assert_allclose(batch_norm_margin(scale, bias), [-0.75, -3.0, 0.0, -2.0])
  far = batch_norm_margin(np.array([1e-3]), np.array([-1e4]))
  np.testing.assert_allclose(far, [-1e4], rtol=1e-4)


def test_a_student_below_a_target_that_is_cut_off_has_no_loss_and_no_gradient():
  s, t = jnp.array([[-5.0, -0.4]]), jnp.array([[-1.0, -3.0]])
  value, gradient = jax.value_and_grad(partial_l2)(s, t, margin=jnp.array([-0.5, -0.5]))
  np.testing.assert_allclose(value, 0.01, rtol=1e-4)
  np.testing.assert_allclose(gradient, [[0.0, 0.2]], rtol=1e-4)


def test_margins_of_the_batch_are_means_of_negative_values():
  s, t = draw(4, 2, 2, 2), draw(4, 2, 2, 2, seed=1)
  t[..., 1] = np.abs(t[..., 1])
  margin = np.array([t[..., 0][t[..., 0] < 0].mean(), 0.0])
  found = partial_l2(s, t, reduction="mean")
  np.testing.assert_allclose(found, expected(s, t, margin) / s.size, rtol=1e-4)


def test_margins_may_differ_between_examples():
  s, t = draw(2, 3, 3, 2), draw(2, 3, 3, 2, seed=1)
  margins = np.array([[-0.1, -0.5], [0.2, -1.0]], "float32")
  found = partial_l2(s, t, margin=margins, reduction="sum")
  wanted = sum(expected(s[i : i + 1], t[i : i + 1], margins[i]) for i in range(2))
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_earlier_stages_weigh_half_as_much_and_a_larger_teacher_is_pooled():
  sides = [
    Output(preactivations={"a": draw(2, 2, 2, 3, seed=i), "b": draw(2, 2, 2, 3, seed=i + 2)})
    for i in (0, 1)
  ]
  margins = [jnp.full(3, -0.4), jnp.full(3, -0.2)]
  found = overhaul(*sides, stages=["a", "b"], margins=margins).feature
  one, other = (
    partial_l2(*(x.preactivations[name] for x in sides), margin=m)
    for name, m in zip("ab", margins, strict=True)
  )
  np.testing.assert_allclose(found, (one / 2 + other) / 1000, rtol=1e-5)
  large = Output(
    preactivations={"a": np.repeat(np.repeat(sides[1].preactivations["a"], 2, 1), 2, 2)}
  )
  found = overhaul(sides[0], large, stages=["a"], margins=margins[:1], scale=1.0).feature
  np.testing.assert_allclose(found, one, rtol=1e-5)


@pytest.mark.parametrize(
  ("teacher", "options", "message"),
  [
    ((2, 4, 4, 2), {}, r"stage 'x'.*differ in shape"),
    (
      (2, 4, 4, 3),
      {"margins": [jnp.ones(4)]},
      r"margin \(4,\) does not fit teacher .* or \(B, C\)",
    ),
    ((2, 4, 4, 3), {"margins": []}, r"margins are 0, stages 1: give one for each"),
    ((2, 4, 4, 3), {"reduction": "max"}, r"unknown reduction 'max': known: batch, mean, sum"),
  ],
)
def test_error_for_wrong_arguments_names_them(teacher, options, message):
  s, t = (Output(preactivations={"x": jnp.ones(shape)}) for shape in ((2, 4, 4, 3), teacher))
  with pytest.raises(ConfigError, match=message):
    overhaul(s, t, stages=["x"], **options)
