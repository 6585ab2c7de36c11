"""Activation boundaries: margin loss, disagreement and published variants."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxkd.errors import ConfigError
from jaxkd.losses import activation_boundaries, boundary_disagreement, boundary_margin
from jaxkd.types import Output

# Each program runs a few times only, so compile time dominates.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

SHAPE = (3, 2, 2, 4)
# Quarters: squares and sums of them are exact.
VALUES = hnp.arrays(np.int8, SHAPE, elements=st.integers(-12, 12)).map(
  lambda x: x.astype(np.float32) / 4
)
margin_and_gradient = jit(jax.value_and_grad(boundary_margin))


def by_hand(s, t, m=1.0):
  """The margin loss of every element, by the paper's formula."""
  off = (s + m) ** 2 * ((s > -m) & (t <= 0))
  on = (s - m) ** 2 * ((s <= m) & (t > 0))
  return off + on


def outputs(*arrays, where="preactivations"):
  return [Output(**{where: {"stage3": jnp.asarray(x)}}) for x in arrays]


def values(seed):
  return np.random.default_rng(seed).normal(size=SHAPE).astype("float32")


@given(VALUES, VALUES)
def test_margin_loss_equals_the_paper_formula(student, teacher):
  value, gradient = margin_and_gradient(student, teacher)
  np.testing.assert_allclose(value, by_hand(student, teacher).sum(), rtol=1e-6)
  slope = 2 * (student + 1) * ((student > -1) & (teacher <= 0))
  slope += 2 * (student - 1) * ((student <= 1) & (teacher > 0))
  np.testing.assert_allclose(gradient, slope, atol=1e-6)


@given(VALUES)
def test_value_and_gradient_are_zero_beyond_the_margin_on_the_teachers_side(teacher):
  for distance in (1.0, 1.5):
    student = np.where(teacher > 0, distance, -distance).astype("float32")
    value, gradient = margin_and_gradient(student, teacher)
    assert value == 0 and (gradient == 0).all()


@given(VALUES, VALUES, st.floats(0.125, 100))
def test_margin_loss_depends_only_on_the_signs_of_the_teacher(student, teacher, scale):
  assert (
    margin_and_gradient(student, np.float32(scale) * teacher)[0]
    == margin_and_gradient(student, np.where(teacher > 0, 1, -1).astype("float32"))[0]
    == margin_and_gradient(student, teacher)[0]
  )


@given(VALUES)
def test_margin_loss_is_positive_within_the_margin_on_the_right_side(teacher):
  student = np.where(teacher > 0, 0.5, -0.5).astype("float32")
  assert margin_and_gradient(student, teacher)[0] == 0.25 * teacher.size
  assert boundary_disagreement(student, teacher) == 0


def test_margin_scales_the_hinge():
  s, t = values(0), values(1)
  np.testing.assert_allclose(boundary_margin(s, t, margin=2), by_hand(s, t, 2).sum(), rtol=1e-5)


def test_reductions_differ_by_the_batch_and_by_the_number_of_elements():
  s, t = values(0), values(1)
  total = boundary_margin(s, t)
  np.testing.assert_allclose(boundary_margin(s, t, reduction="batch"), total / 3, rtol=1e-6)
  np.testing.assert_allclose(boundary_margin(s, t, reduction="mean"), total / s.size, rtol=1e-6)


@given(VALUES)
def test_disagreement_is_zero_for_equal_and_one_for_opposite_signs(x):
  x = np.where(x == 0, 0.25, x).astype("float32")
  assert boundary_disagreement(x, x) == boundary_disagreement(x, 2 * x) == 0
  assert boundary_disagreement(-x, x) == 1


def test_disagreement_is_the_share_of_neurons_on_in_only_one_network():
  # Zero is off, as it is after a ReLU.
  s, t = jnp.array([[0.0, 1.0, -1.0, 2.0]]), jnp.array([[-3.0, 0.0, 0.5, 0.1]])
  assert boundary_disagreement(s, t) == 0.5
  assert boundary_disagreement(s, t).dtype == jnp.float32


def test_default_stage_weights_double_with_depth():
  s, t = values(0), values(1)
  names = ("stage1", "stage2", "stage3")
  value = boundary_margin(s, t, reduction="batch")
  for changed, weight in zip(names, (0.25, 0.5, 1.0), strict=True):
    # The student differs at one stage only.
    student = Output(preactivations={n: s if n == changed else 9 * np.sign(t) for n in names})
    teacher = Output(preactivations=dict.fromkeys(names, t))
    terms = activation_boundaries(student, teacher, stages=names)
    np.testing.assert_allclose(terms.feature, 0.003 * weight * value, rtol=1e-5)


def test_options_give_the_published_variants():
  s, t = values(0), values(1)
  pair = outputs(s, t)
  for options, expected in (
    ({"stage_weights": [1.0], "scale": 1.0}, by_hand(s, t).sum() / 3),
    ({"reduction": "mean", "margin": 2.0, "scale": 1.0}, by_hand(s, t, 2.0).mean()),
    ({"reduction": "sum", "stage_weights": [0.5]}, 0.0015 * by_hand(s, t).sum()),
  ):
    terms = activation_boundaries(*pair, stages=["stage3"], **options)
    np.testing.assert_allclose(terms.feature, expected, rtol=1e-5)


def test_preactivations_are_compared_by_default():
  pair = outputs(values(0), values(1), where="features")
  with pytest.raises(ConfigError, match="has no preactivations, so no stage 'stage3'"):
    activation_boundaries(*pair, stages=["stage3"])
  assert activation_boundaries(*pair, stages=["stage3"], arrays="features").feature > 0


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"margin": 0}, "margin is 0"),
    ({"reduction": "batchmean"}, "unknown reduction 'batchmean'"),
    ({"stage_weights": [1.0, 2.0]}, "stage_weights are 2, stages 1"),
    ({"stages": "stage3"}, "stages is 'stage3'"),
  ],
)
def test_wrong_options_raise_an_error_that_names_them(options, message):
  with pytest.raises(ConfigError, match=message):
    activation_boundaries(*outputs(values(0), values(1)), **({"stages": ["stage3"]} | options))


def test_error_for_different_shapes_names_stage_and_shapes():
  pair = outputs(values(0), values(1)[..., :3])
  message = r"stage 'stage3': .*student \(3, 2, 2, 4\) and teacher \(3, 2, 2, 3\).*adapter"
  with pytest.raises(ConfigError, match=message):
    activation_boundaries(*pair, stages=["stage3"])
