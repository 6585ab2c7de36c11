"""KDCL: the targets by their definitions, the linear one as a convex problem, degenerate inputs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.errors import ConfigError
from jaxkd.losses import collaborative_kl, collaborative_learning
from jaxkd.losses._kdcl_target import ensemble_target, linear_weights
from jaxkd.losses.kdcl import ENSEMBLES
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.partial(jit, static_argnames="ensemble")
def compute(branches, labels, weights=None, ensemble="minlogit"):
  kernel = functools.partial(collaborative_kl, ensemble=ensemble)
  return jax.value_and_grad(kernel)(branches, labels, weights)


def draw(*shape, seed=0, scale=2.0):
  return scale * np.random.default_rng(seed).normal(size=shape).astype("float32")


def softmax(x):
  x = np.exp(x.astype("float64") - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def costs(z, labels):
  return -np.log(np.take_along_axis(softmax(z), labels[..., None], -1)[..., 0])


def target(z, labels, ensemble):
  """The target by the paper's definition."""
  if ensemble == "mean":
    return z.mean(0)
  if ensemble == "minlogit":
    return (z - z[:, np.arange(len(labels)), labels][..., None]).min(0)
  each = np.stack([costs(branch, labels) for branch in z])
  if ensemble == "naive_batch":
    return z[each.sum(1).argmin()]
  return z[each.argmin(0), np.arange(len(labels))]


@pytest.mark.parametrize("ensemble", ["mean", "minlogit", "naive", "naive_batch"])
def test_loss_equals_the_definition(ensemble):
  z, labels = draw(3, 6, 5), np.arange(6) % 5
  q = softmax(target(z.astype("float64"), labels, ensemble) / 2)
  p = softmax(z / 2)
  value, slopes = compute(z, labels, ensemble=ensemble)
  np.testing.assert_allclose(value, 4 * (q * np.log(q / p)).sum((0, 2)).mean(), rtol=1e-5)
  np.testing.assert_allclose(slopes, 2 * (p - q) / 6, rtol=1e-4, atol=1e-6)


def ce_of(a, z, labels):
  return costs(np.tensordot(a, z.astype("float64"), 1), labels).mean()


@given(st.integers(0, 2**16), st.sampled_from([0.5, 2.0, 10.0]))
def test_linear_weights_lie_on_the_simplex_and_are_better_than_equal_ones(seed, scale):
  z, labels = draw(3, 12, 4, seed=seed, scale=scale), np.arange(12) % 4
  classes, ones = np.eye(4, dtype="float32")[labels], np.ones(12, "float32")
  a = np.asarray(solved(z, classes, ones))
  assert (a >= 0).all() and abs(a.sum() - 1) < 1e-5
  # Steps of 0.1 may be too long for large logits.
  if scale < 10:
    assert ce_of(a, z, labels) <= ce_of(np.full(3, 1 / 3), z, labels) + 1e-6


@jit
def solved(z, classes, weight):
  return linear_weights(z, classes, weight, (50, 0.1, "simplex"))


def test_many_steps_find_the_minimum_of_the_convex_problem():
  z, labels = draw(2, 40, 4), np.arange(40) % 4
  z[0, np.arange(40), labels] += 1.0
  classes, ones = np.eye(4, dtype="float32")[labels], np.ones(40, "float32")
  a = linear_weights(jnp.asarray(z), classes, ones, (2000, 0.1, "simplex"))
  shares = np.linspace(0, 1, 1001)
  best = min(shares, key=lambda x: ce_of(np.array([x, 1 - x]), z, labels))
  np.testing.assert_allclose(a, [best, 1 - best], atol=2e-3)


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_branches_that_agree_give_0_and_their_order_does_not_matter(ensemble):
  z, labels = draw(1, 6, 5), np.arange(6) % 5
  value, slopes = compute(np.repeat(z, 3, 0), labels, ensemble=ensemble)
  np.testing.assert_allclose(value, 0, atol=1e-6)
  np.testing.assert_allclose(slopes, 0, atol=1e-6)
  z = draw(3, 6, 5, seed=1)
  value, _ = compute(z, labels, ensemble=ensemble)
  np.testing.assert_allclose(compute(z[::-1], labels, ensemble=ensemble)[0], value, rtol=1e-5)


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_degenerate_logits_are_finite(ensemble):
  labels = np.arange(6) % 5
  for scale in (0.0, 1e-18, 1e8):
    chex_finite(compute(draw(3, 6, 5, scale=np.float32(scale)), labels, ensemble=ensemble))
  z = draw(3, 6, 5)
  z[:, :, 4] = -np.inf  # a class that is impossible for all
  possible = np.arange(6) % 4
  value, slopes = compute(z, possible, ensemble=ensemble)
  chex_finite((value, slopes))
  wanted, _ = compute(z[..., :4], possible, ensemble=ensemble)
  np.testing.assert_allclose(value, wanted, rtol=1e-5)


def chex_finite(values):
  assert all(np.isfinite(x).all() for x in values)


@pytest.mark.parametrize("ensemble", ["minlogit", "naive"])
def test_positions_without_a_label_have_the_mean_as_target(ensemble):
  z, labels = draw(3, 6, 5), np.array([0, 1, -1, 3, 4, -1])
  weights = np.array([1, 1, 0, 1, 1, 1], "float32")
  found = ensemble_target(jnp.asarray(z), labels, weights, ensemble=ensemble)
  np.testing.assert_allclose(found[np.array([2, 5])], z.mean(0)[[2, 5]], rtol=1e-5)
  rest = np.array([0, 1, 3, 4])
  known = ensemble_target(jnp.asarray(z[:, rest]), labels[rest], None, ensemble=ensemble)
  np.testing.assert_array_equal(found[rest], known)


@pytest.mark.parametrize("ensemble", ["naive_batch", "linear"])
def test_targets_of_the_whole_batch_are_those_of_all_devices(ensemble):
  z, labels = draw(3, 8, 5), np.arange(8) % 5
  where = np.array([1, 1, 0, 1, 1, 1, 1, 0], bool)
  kernel = functools.partial(collaborative_kl, ensemble=ensemble)

  def shard(z, labels, where):
    return jax.value_and_grad(kernel)(z, labels, axis_name="batch", where=where)

  split = z.reshape(3, 2, 4, 5), labels.reshape(2, 4), where.reshape(2, 4)
  values, slopes = jit(jax.vmap(shard, in_axes=(1, 0, 0), axis_name="batch"))(*split)
  value, gradient = compute(z[:, where], labels[where], ensemble=ensemble)
  np.testing.assert_allclose(values.mean(), value, rtol=1e-5)
  slopes = np.moveaxis(np.asarray(slopes), 0, 1).reshape(3, 8, 5) / 2
  np.testing.assert_allclose(slopes[:, where], gradient, rtol=1e-4, atol=1e-6)


def test_wrong_options_and_shapes_are_refused_in_one_line():
  z, labels = draw(2, 3, 4), np.arange(3)
  for options, message in (
    ({"ensemble": "min"}, "unknown ensemble 'min'"),
    ({"projection": "l2"}, "unknown projection 'l2'"),
    ({"steps": -1}, "steps is -1: it must be an integer >= 0"),
    ({"rate": 0.0}, "rate is 0.0: it must be a finite number"),
    ({"where": np.ones(2)}, r"where \(2,\) does not belong to logits \(3, 4\)"),
  ):
    with pytest.raises(ConfigError, match=message):
      collaborative_kl(z, labels, **options)
  with pytest.raises(ConfigError, match=r"^labels \(2,\) of int\d+ do not belong to logits"):
    collaborative_kl(z, np.arange(2))
  with pytest.raises(ConfigError, match=r"branches \(0, 3, 4\): expected logits \(M, ..., C\)"):
    collaborative_kl(z[:0], labels)
  with pytest.raises(ConfigError, match=r"branch 0 \(3, 4\) and branch 1 \(2, 4\) differ"):
    collaborative_learning([Output(z[0]), Output(z[0, :2])], labels)
  with pytest.raises(ConfigError, match=r"branches is empty"):
    collaborative_learning([], labels)
