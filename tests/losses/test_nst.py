"""Neuron selectivity transfer: definition, invariances and memory of the squared MMD."""

from __future__ import annotations

import functools
import itertools

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
  gaussian_mmd,
  linear_mmd,
  neuron_selectivity_transfer,
  polynomial_mmd,
)
from jaxkd.types import Output, Terms

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

KERNELS = {
  "polynomial": polynomial_mmd,
  "cubic": functools.partial(polynomial_mmd, degree=3, offset=1.0),
  "gaussian": gaussian_mmd,
  "linear": linear_mmd,
  # Fewer positions than channels: the polynomial kernel then uses outer products.
  "polynomial of few positions": lambda s, t, **options: polynomial_mmd(
    s[:, :1], t[:, :1], **options
  ),
}

# Multiples of 1/4: many channels are all zero, and no other norm is near 0.
MAPS = hnp.arrays(np.int8, (2, 3, 3, 4), elements=st.integers(-40, 40)).map(
  lambda x: x.astype(np.float32) / 4
)
ORDER = st.permutations(range(4))
SCALES = hnp.arrays(np.float32, 4, elements=st.floats(0.125, 8, width=32))

# Tolerance: means of a kernel of up to (1 + 1)^3 are subtracted.
ROUNDING = 5e-6


@jit
def mmds(student, teacher):
  """Value and gradient under every kernel."""
  return {name: jax.value_and_grad(mmd)(student, teacher) for name, mmd in KERNELS.items()}


def assert_same_values(actual, expected):
  for name in KERNELS:
    np.testing.assert_allclose(actual[name][0], expected[name][0], atol=ROUNDING, err_msg=name)


def random_maps(*shapes, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=shape).astype("float32") for shape in shapes]


def by_hand(student, teacher, kernel):
  """The MMD by a loop over pairs of channels; `union` holds all maps of the example."""
  total = 0.0
  for s, t in zip(student, teacher, strict=True):
    sides = []
    for x in (s, t):
      flat = x.reshape(-1, x.shape[-1]).T.astype(np.float64)
      norms = [np.sqrt((m**2).sum()) for m in flat]
      sides.append([m / n if n else m for m, n in zip(flat, norms, strict=True)])
    union = sides[0] + sides[1]

    def mean(a, b, union=union):
      return np.mean([kernel(x, y, union) for x, y in itertools.product(a, b)])

    total += mean(sides[0], sides[0]) - 2 * mean(*sides) + mean(sides[1], sides[1])
  return total / len(student)


def squared_distance(x, y):
  return ((x - y) ** 2).sum()


def mean_squared_distance(union):
  return np.mean([squared_distance(x, y) for x, y in itertools.product(union, union)])


def gaussian_by_hand(x, y, union):
  return np.exp(-squared_distance(x, y) / (2 * mean_squared_distance(union)))


@pytest.mark.parametrize("shapes", [((2, 3, 3, 3), (2, 3, 3, 4)), ((2, 1, 2, 5), (2, 1, 2, 4))])
def test_mmd_equals_a_loop_over_pairs_of_channels(shapes):
  cases = [
    (polynomial_mmd, {}, lambda x, y, _: (x @ y) ** 2),
    (polynomial_mmd, {"degree": 3, "offset": 1.0}, lambda x, y, _: (x @ y + 1) ** 3),
    (polynomial_mmd, {"degree": 3}, lambda x, y, _: (x @ y) ** 3),
    (polynomial_mmd, {"offset": 0.5}, lambda x, y, _: (x @ y + 0.5) ** 2),
    (linear_mmd, {}, lambda x, y, _: x @ y),
    (gaussian_mmd, {}, gaussian_by_hand),
    (gaussian_mmd, {"variance": 0.3}, lambda x, y, _: np.exp(-squared_distance(x, y) / 0.6)),
  ]
  s, t = random_maps(*shapes)
  s[0, ..., 1] = 0.0
  values = jit(lambda s, t: [mmd(s, t, **options) for mmd, options, _ in cases])(s, t)
  for value, (mmd, options, kernel) in zip(values, cases, strict=True):
    message = f"{mmd.__name__} {options}"
    np.testing.assert_allclose(value, by_hand(s, t, kernel), rtol=1e-5, err_msg=message)


@given(MAPS, MAPS)
def test_mmd_is_nonnegative_with_a_finite_gradient(student, teacher):
  for name, (value, gradient) in mmds(student, teacher).items():
    assert value > -ROUNDING and np.isfinite(gradient).all(), name


@given(MAPS, MAPS, ORDER, ORDER)
def test_mmd_ignores_the_order_of_the_channels(student, teacher, for_student, for_teacher):
  assert_same_values(
    mmds(student[..., for_student], teacher[..., for_teacher]), mmds(student, teacher)
  )


@given(MAPS, MAPS, SCALES, SCALES)
def test_mmd_ignores_the_scale_of_each_channel(student, teacher, for_student, for_teacher):
  scaled = mmds(np.multiply(student, for_student), np.multiply(teacher, for_teacher))
  assert_same_values(scaled, mmds(student, teacher))


@given(MAPS, ORDER)
def test_mmd_of_equal_sets_is_zero_with_a_zero_gradient(x, order):
  for name, (value, gradient) in mmds(x, x[..., order]).items():
    assert abs(value) < ROUNDING and np.abs(gradient).max() < 1e-5, name


def test_mmd_depends_on_the_active_positions():
  x = np.zeros((2, 3, 3, 4), np.float32)
  moved = x.copy()
  x[:, 0, 0], moved[:, 0, 1] = 1.0, 1.0
  assert all(value > 0.5 for value, _ in mmds(x, moved).values())


@pytest.mark.parametrize("fill", [0.0, 1.0, -1e4])
def test_constant_maps_give_finite_gradients(fill):
  (some,) = random_maps((2, 3, 3, 4))
  constant = np.full((2, 3, 3, 4), fill, np.float32)
  for teacher in (some, constant):
    for name, (value, gradient) in mmds(constant, teacher).items():
      assert np.isfinite(value) and np.isfinite(gradient).all(), name


def test_dead_channels_have_zero_gradient_and_do_not_affect_others():
  s, t = random_maps((2, 3, 3, 4), (2, 3, 3, 4))
  s[:, :, :, 1] = 0.0
  for name, (_, gradient) in mmds(s, t).items():
    assert (gradient[..., 1] == 0).all() and (gradient[:, 0, :, 0] != 0).all(), name
    assert np.abs(gradient).max() < 10, name


def test_teacher_term_changes_only_the_value():
  s, t = random_maps((2, 3, 3, 4), (2, 3, 3, 4))

  @jit
  def constant_left_out(s, t):
    return {n: jax.value_and_grad(f)(s, t, teacher_term=False) for n, f in KERNELS.items()}

  full, less, less_at_equality = mmds(s, t), constant_left_out(s, t), constant_left_out(t, t)
  for name in KERNELS:
    np.testing.assert_allclose(less[name][1], full[name][1], atol=1e-6, err_msg=name)
    constant = full[name][0] - less[name][0]
    assert constant > 0.05, name
    if name != "gaussian":  # its variance depends on the student
      # For equal sets, the student's term minus twice the mixed term is minus the constant.
      np.testing.assert_allclose(constant, -less_at_equality[name][0], rtol=1e-4, err_msg=name)


def test_variance_from_the_data_takes_no_gradient():
  x, y = random_maps((1, 3, 3, 4), (1, 3, 3, 4))
  union = np.concatenate([x, y], axis=3).reshape(9, 8)
  union = union / np.linalg.norm(union, axis=0)
  variance = np.float32(mean_squared_distance(union.T))
  evaluate = jit(jax.value_and_grad(lambda s, t, v: gaussian_mmd(s, t, variance=v)))
  # The same example twice, so that the whole batch has one variance.
  s, t = np.repeat(x, 2, axis=0), np.repeat(y, 2, axis=0)
  value, gradient = evaluate(s, t, variance)
  np.testing.assert_allclose(mmds(s, t)["gaussian"][0], value, rtol=1e-5)
  np.testing.assert_allclose(mmds(s, t)["gaussian"][1], gradient, atol=1e-6)


def sizes_inside(jaxpr):
  """The number of elements of every array of a computation, inner functions included."""
  for equation in jaxpr.eqns:
    yield from (variable.aval.size for variable in equation.outvars)
    for parameter in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
      inner = getattr(parameter, "jaxpr", parameter)
      if hasattr(inner, "eqns"):
        yield from sizes_inside(inner)


def naive_polynomial_mmd(s, t):
  def mean(x, y):
    return jnp.mean(jnp.sum(x[..., :, None] * y[..., None, :], axis=(1, 2)) ** 2)

  return jax.jit(lambda: mean(s, s) - 2 * mean(s, t) + mean(t, t))()


def test_no_array_has_positions_and_pairs_of_channels():
  for height, width, channels in ((4, 4, 8), (2, 3, 16)):
    batch, positions = 2, height * width
    x = jnp.ones((batch, height, width, channels))

    def largest(mmd, x=x):
      return max(sizes_inside(jax.make_jaxpr(jax.value_and_grad(mmd))(x, x).jaxpr))

    assert largest(naive_polynomial_mmd) == batch * positions * channels**2
    for mmd in (polynomial_mmd, functools.partial(polynomial_mmd, degree=3), gaussian_mmd):
      assert largest(mmd) <= batch * channels * max(positions, channels)
    assert largest(linear_mmd) == batch * positions * channels
    if positions < channels:
      assert largest(polynomial_mmd) == batch * positions * channels


def test_larger_map_is_pooled_to_the_smaller():
  @jit
  def pairs(large, small):
    pooled = adaptive_average_pool(large, 2, 2)
    return [
      (linear_mmd(*sides), linear_mmd(*equal))
      for sides, equal in (((large, small), (pooled, small)), ((small, large), (small, pooled)))
    ]

  for value, expected in pairs(*random_maps((2, 4, 4, 3), (2, 2, 2, 4))):
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_loss_passes_its_options_to_the_kernels():
  s, t = random_maps((2, 3, 3, 3), (2, 3, 3, 4))
  options = [
    ("polynomial", polynomial_mmd, {}),
    ("polynomial", polynomial_mmd, {"degree": 3, "offset": 1.0, "teacher_term": False}),
    ("gaussian", gaussian_mmd, {"variance": 0.3, "teacher_term": False}),
    ("linear", linear_mmd, {"teacher_term": False}),
  ]

  @jit
  def both(s, t):
    outputs = [Output(preactivations={"stage3": x}) for x in (s, t)]
    loss = functools.partial(neuron_selectivity_transfer, *outputs, arrays="preactivations")
    return [
      (loss(kernel=name, stage_weights=[2.0], **chosen), 2.0 * mmd(s, t, **chosen))
      for name, mmd, chosen in options
    ]

  for terms, expected in both(s, t):
    assert isinstance(terms, Terms) and terms.logit == 0
    np.testing.assert_allclose(terms.feature, expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"kernel": "gausian"}, "unknown kernel 'gausian': did you mean 'gaussian'"),
    ({"degree": 0}, "stage 'stage3': degree is 0"),
    ({"degree": 2.5}, r"degree is 2\.5: it must be an integer"),
    ({"offset": -1.0}, r"offset is -1\.0"),
    ({"kernel": "gaussian", "variance": 0.0}, r"variance is 0\.0"),
    ({"stages": ["x"]}, "unknown student stage 'x'"),
    ({"arrays": "preactivations"}, "no preactivations, so no stage 'stage3'"),
  ],
)
def test_wrong_options_raise_an_error_that_names_them(options, message):
  x = Output(features={"stage3": jnp.ones((1, 2, 2, 1))})
  with pytest.raises(ConfigError, match=message):
    neuron_selectivity_transfer(x, x, **options)


@pytest.mark.parametrize("kernel", ["polynomial", "gaussian", "linear"])
@pytest.mark.parametrize(
  ("student", "teacher"), [((2, 3), (2, 2, 2, 3)), ((2, 2, 2, 3), (3, 2, 2, 3))]
)
def test_error_for_incompatible_shapes_names_the_stage(kernel, student, teacher):
  s, t = (Output(features={"x": jnp.ones(shape)}) for shape in (student, teacher))
  with pytest.raises(ConfigError, match=rf"stage 'x': {kernel}_mmd: .*student \(2"):
    neuron_selectivity_transfer(s, t, stages=["x"], kernel=kernel)
