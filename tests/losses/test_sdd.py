"""Scale-decoupled distillation: definition, weights of regions, and cells of maps."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.losses import (
  adaptive_average_pool,
  decoupled_distillation,
  region_divergence,
  soft_target_kl,
)
from jaxkd.methods.sdd import regions
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

S, T = 2.0 * np.random.default_rng(0).normal(size=(2, 6, 5, 4)).astype("float32")
LABELS = np.array([0, 1, 2, 3, 0, 1])


@functools.cache
def compiled(**options):
  return jit(jax.value_and_grad(functools.partial(region_divergence, **options)))


def softmax(z, temperature=1.0):
  p = np.exp(np.asarray(z, np.float64) / temperature)
  return p / p.sum(-1, keepdims=True)


def weights(factor=2.0):
  right = T.argmax(-1) == LABELS[:, None]
  return np.where(right == right[:, :1], 1.0, factor)


def test_divergence_equals_the_definition():
  p, q = softmax(T, 4.0), softmax(S, 4.0)
  each = 16 * (p * np.log(p / q)).sum(-1)
  assert len(np.unique(weights())) == 2 and (weights()[:, 0] == 1).all()
  value = compiled()(S, T, LABELS)[0]
  np.testing.assert_allclose(value, (weights() * each).mean(), rtol=1e-5)
  value = compiled(complementary_weight=5.0)(S, T, LABELS)[0]
  np.testing.assert_allclose(value, (weights(5.0) * each).mean(), rtol=1e-5)
  one_hot = np.eye(4, dtype="float32")[LABELS]
  np.testing.assert_allclose(compiled()(S, T, one_hot)[0], compiled()(S, T, LABELS)[0], rtol=1e-6)


def test_one_region_of_equal_decisions_is_plain_distillation():
  value = compiled()(S[:, :1], T[:, :1], LABELS)[0]
  np.testing.assert_allclose(value, soft_target_kl(S[:, 0], T[:, 0]), rtol=1e-6)
  value = compiled(form="dkd")(S[:, :1], T[:, :1], LABELS)[0]
  parts = decoupled_distillation(Output(S[:, 0]), Output(T[:, 0]), LABELS)
  np.testing.assert_allclose(value, sum(x.total for x in parts.values()), rtol=1e-6)


@pytest.mark.parametrize("mask_target", [True, False])
def test_nkd_of_regions_equals_the_definition(mask_target):
  of_label = np.eye(4)[LABELS][:, None] > 0
  p, q = softmax(T), softmax(S)
  total = -(np.where(of_label, p, 0).sum(-1) * np.log(np.where(of_label, q, 0).sum(-1)))
  p, q = softmax(T, 2.0), softmax(S, 2.0)
  if mask_target:
    p, q = (np.where(of_label, 0, x) for x in (p, q))
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
  total = total - 1.5 * 4 * (p * np.log(np.where(p > 0, q, 1))).sum(-1)
  value = compiled(form="nkd", temperature=2.0, mask_target=mask_target)(S, T, LABELS)[0]
  np.testing.assert_allclose(value, (weights() * total).mean(), rtol=1e-5)


@pytest.mark.parametrize("form", ["kd", "dkd"])
def test_value_and_gradient_are_zero_for_equal_logits(form):
  value, gradient = compiled(form=form)(T, T, LABELS)
  assert value == 0 and not np.any(gradient)


@pytest.mark.parametrize("form", ["kd", "dkd", "nkd"])
def test_order_of_the_regions_but_the_first_does_not_matter(form):
  turned = [0, 4, 3, 2, 1]
  value, gradient = compiled(form=form)(S, T, LABELS)
  found, same = compiled(form=form)(S[:, turned], T[:, turned], LABELS)
  np.testing.assert_allclose(found, value, rtol=1e-6)
  np.testing.assert_allclose(same, gradient[:, np.array(turned)], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("form", ["kd", "dkd", "nkd"])
def test_classes_impossible_on_both_sides_have_no_effect(form):
  s, t = (np.insert(z, 4, -np.inf, axis=-1) for z in (S, T))
  value, gradient = compiled(form=form)(s, t, LABELS)
  np.testing.assert_allclose(value, compiled(form=form)(S, T, LABELS)[0], rtol=1e-5)
  assert np.isfinite(gradient).all() and not np.any(gradient[..., 4])


def test_examples_without_a_label_are_left_out():
  labels, s, t = np.append(LABELS, -1), np.pad(S, ((0, 1), (0, 0), (0, 0))), np.insert(T, 6, 1, 0)
  weighed = np.append(np.ones(6, "float32"), 0.0)
  value, gradient = compiled()(s, t, labels, weighed)
  np.testing.assert_allclose(value, compiled()(S, T, LABELS)[0], rtol=1e-6)
  assert not np.any(gradient[6])
  assert np.isnan(compiled()(s, t, labels)[0])


def test_cells_of_maps_are_row_by_row_and_their_means_those_of_the_pooled_map():
  maps = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 3)), jnp.float32)
  for scale, cells in zip((1, 2, 4), regions(maps, (1, 2, 4)), strict=True):
    assert cells.shape == (2 * scale * scale, 8 // scale, 8 // scale, 3)
    means = np.mean(cells, axis=(1, 2)).reshape(2, scale, scale, 3)
    pooled = adaptive_average_pool(adaptive_average_pool(maps, 4, 4), scale, scale)
    np.testing.assert_allclose(means, pooled, rtol=1e-5, atol=1e-6)
  # A size that 4 does not divide is pooled first, smaller ones are repeated.
  for size in (7, 2):
    one, _, four = regions(maps[:, :size, :size], (1, 2, 4))
    assert one.shape == (2, 4, 4, 3) and four.shape == (32, 1, 1, 3)
    np.testing.assert_allclose(
      four.reshape(2, 4, 4, 3), adaptive_average_pool(maps[:, :size, :size], 4, 4), rtol=1e-6
    )


def test_errors_name_what_does_not_fit():
  with pytest.raises(ConfigError, match=r"logits \(6, 4\) are not \(B, regions, classes\)"):
    region_divergence(S[:, 0], T[:, 0], LABELS)
  with pytest.raises(ConfigError, match=r"labels \(5,\) do not belong to logits \(6, 5, 4\)"):
    region_divergence(S, T, LABELS[:5])
  with pytest.raises(ConfigError, match="unknown form 'kl'"):
    region_divergence(S, T, LABELS, form="kl")
