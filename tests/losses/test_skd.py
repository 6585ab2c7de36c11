"""SKD: definition of both terms, forms of the published code, regions, devices, options."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.losses import pair_wise_mse, pixel_divergence, soft_target_kl, structured
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


def regions(x, rows, columns, reduce):
  """Features (B, N, C) of regions of some rows and columns, those at the border smaller."""
  found = [
    reduce(x[:, i : i + rows, j : j + columns], (1, 2))
    for i in range(0, x.shape[1], rows)
    for j in range(0, x.shape[2], columns)
  ]
  return np.stack(found, axis=1).astype("float64")


def expected_pairs(student, teacher, region, reduce=np.max):
  def similarities(x):
    nodes = regions(x, *region, reduce)
    nodes = nodes / (np.linalg.norm(nodes, axis=2, keepdims=True) + 1e-8)
    return nodes @ nodes.transpose(0, 2, 1)

  gap = similarities(student) - similarities(teacher)
  return (gap**2).sum() / gap.shape[1] ** 2 / len(student)


def test_pixels_are_the_mean_kl_and_the_codes_sum_of_cross_entropies():
  s, t = draw(3, 2, 4, 5), draw(3, 2, 4, 5, seed=1)
  wanted = soft_target_kl(s, t, temperature=1.0)
  np.testing.assert_allclose(pixel_divergence(s, t), wanted, rtol=1e-5)
  log_p, p = jax.nn.log_softmax(s), jax.nn.softmax(t)
  code = pixel_divergence(s, t, form="code")
  np.testing.assert_allclose(code, -np.sum(p * log_p) / 8, rtol=1e-5)
  slopes = [
    jit(jax.grad(functools.partial(pixel_divergence, form=form)))(s, t)
    for form in ("paper", "code")
  ]
  np.testing.assert_allclose(3 * slopes[0], slopes[1], rtol=1e-5, atol=1e-7)


def test_a_class_that_is_impossible_for_both_adds_nothing():
  s, t = draw(2, 3, 4), draw(2, 3, 4, seed=1)
  s[..., 1] = t[..., 1] = -np.inf
  for form in ("paper", "code"):
    compute = jit(jax.value_and_grad(functools.partial(pixel_divergence, form=form)))
    (value, gradient), other = compute(s, t), compute(s[..., [0, 2, 3]], t[..., [0, 2, 3]])
    np.testing.assert_allclose(value, other[0], rtol=1e-5)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("pool", "reduce"), [("max", np.max), ("average", np.mean)])
@pytest.mark.parametrize(
  ("size", "scale", "region"), [((5, 4), 0.5, (2, 2)), ((4, 4), 1.0, (4, 4))]
)
def test_pairs_equal_the_definition(pool, reduce, size, scale, region):
  s, t = draw(3, *size, 4), draw(3, *size, 2, seed=1)
  value = jit(functools.partial(pair_wise_mse, pool=pool, scale=scale))(s, t)
  np.testing.assert_allclose(value, expected_pairs(s, t, region, reduce), rtol=1e-4, atol=1e-7)


def test_regions_of_a_smaller_student_have_the_teachers_size_if_their_number_agrees():
  s, t = draw(2, 5, 5, 3), draw(2, 6, 6, 3, seed=1)
  np.testing.assert_allclose(pair_wise_mse(s, t), expected_pairs(s, t, (3, 3)), rtol=1e-4)
  assert np.isfinite(pair_wise_mse(draw(2, 2, 2, 3), t))


def test_pairs_ignore_rotation_and_scale_of_positions():
  s, t = draw(3, 2, 2, 4), draw(3, 2, 2, 4, seed=1)
  rotation, _ = np.linalg.qr(draw(4, 4, seed=2))
  turned = pair_wise_mse(3 * s @ rotation, 1e8 * t)
  np.testing.assert_allclose(turned, pair_wise_mse(s, t), rtol=1e-4)
  assert pair_wise_mse(3 * s, s) < 1e-12


def test_detached_norms_give_the_same_value_and_another_gradient():
  s, t = draw(3, 2, 2, 4), draw(3, 2, 2, 4, seed=1)
  one, other = (
    jit(jax.value_and_grad(functools.partial(pair_wise_mse, norm_detached=detached)))(s, t)
    for detached in (False, True)
  )
  np.testing.assert_allclose(one[0], other[0], rtol=1e-6)
  assert np.abs(one[1] - other[1]).max() > 1e-3
  # The scale of a feature does not change a cosine: a gradient along it would be the norm's.
  moved = [np.abs(np.einsum("bijc,bijc->bij", s, g)).max() for g in (one[1], other[1])]
  assert moved[0] < 1e-6 and moved[1] > 1e-3


@pytest.mark.parametrize("scale", [1e8, 1e-18])
def test_extreme_inputs_have_finite_gradients(scale):
  s, t = np.float32(scale) * draw(1, 4, 4, 3), draw(1, 4, 4, 3, seed=1)
  s[0, :2, :2] = 0
  for kernel in (pair_wise_mse, pixel_divergence):
    value, gradient = jit(jax.value_and_grad(kernel))(s, t)
    assert np.isfinite(value) and np.isfinite(gradient).all()
  assert not jax.grad(pair_wise_mse)(s, t)[0, :2, :2].any()


@pytest.mark.parametrize("form", ["paper", "code"])
def test_devices_with_a_mask_give_the_value_of_the_global_batch(form):
  s, t = draw(8, 2, 2, 3), draw(8, 2, 2, 3, seed=1)
  where = np.arange(8) < 3  # one device has one, another none

  def loss(s, t, where, axis_name=None):
    student, teacher = Output(s, {"x": s}), Output(t, {"x": t})
    options = {"form": form, "axis_name": axis_name, "where": where}
    return structured(student, teacher, stages=["x"], scale=0.5, **options).total

  split = [x.reshape(4, 2, *x.shape[1:]) for x in (s, t, where)]
  mapped = jax.vmap(functools.partial(loss, axis_name="batch"), axis_name="batch")
  np.testing.assert_allclose(jit(mapped)(*split).mean(), loss(s, t, where), rtol=1e-5)


def test_weights_of_zero_need_no_arrays():
  s, t = Output(logits=draw(2, 3)), Output(logits=draw(2, 3, seed=1))
  terms = structured(s, t, pair_weight=0.0)
  np.testing.assert_allclose(terms.logit, 10 * pixel_divergence(s.logits, t.logits), rtol=1e-6)
  maps = Output(features={"stage3": draw(2, 4, 4, 3)})
  assert structured(maps, maps, pixel_weight=0.0).total == 0


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"form": "papers"}, "unknown form 'papers'"),
    ({"pool": "median"}, "unknown pool 'median'"),
    ({"scale": 0.0}, "scale is 0.0: it must be a finite number greater than 0"),
    (
      {"scale": 0.2},
      r"stage 'stage3': scale is 0.2: a region of a map \(2, 4, 4, 3\) would have 0x0",
    ),
  ],
)
def test_error_for_wrong_arguments_names_them(options, message):
  x = Output(jnp.ones((2, 4, 4, 3)), {"stage3": jnp.ones((2, 4, 4, 3))})
  with pytest.raises(ConfigError, match=message):
    structured(x, x, **options)
