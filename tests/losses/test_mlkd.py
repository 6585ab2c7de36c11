"""MLKD: definition, shares, masks, the global batch over devices, impossible classes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.losses import batch_correlation, class_correlation, multi_level, soft_target_kl
from jaxkd.losses.mlkd import shares_of
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
TEMPERATURES = (4.0, 2.0)


def draw(*shape, seed=0):
  return 3 * np.random.default_rng(seed).normal(size=shape).astype("float32")


S, T, STRONG_S, STRONG_T = (draw(6, 4, seed=seed) for seed in range(4))


def softmax(z, temperature=1.0):
  e = np.exp(z.astype("float64") / temperature)
  return e / e.sum(axis=1, keepdims=True)


def expected_correlations(student, teacher, temperature):
  p, q = softmax(student, temperature), softmax(teacher, temperature)
  of_classes = ((p.T @ p - q.T @ q) ** 2).sum() / p.shape[1]
  return of_classes, ((p @ p.T - q @ q.T) ** 2).sum() / len(p)


def test_correlations_equal_their_definitions_and_ignore_shifts():
  of_classes, of_batch = expected_correlations(S, T, 2.0)
  np.testing.assert_allclose(class_correlation(S, T, temperature=2.0), of_classes, rtol=1e-5)
  np.testing.assert_allclose(batch_correlation(S + 7, T, temperature=2.0), of_batch, rtol=1e-5)


def computed(**options):
  views = (Output(x) for x in (S, T, STRONG_S, STRONG_T))
  parts = multi_level(*views, temperatures=TEMPERATURES, **options)
  return {name: float(terms.logit) for name, terms in parts.items()}


def kl(student, teacher, temperatures):
  return sum(float(soft_target_kl(student, teacher, temperature=t)) for t in temperatures)


def test_parts_are_sums_over_temperatures_of_both_views():
  parts = computed()
  instances = kl(S, T, TEMPERATURES) + kl(STRONG_S, STRONG_T, TEMPERATURES)
  np.testing.assert_allclose(parts["instances"], instances, rtol=1e-5)
  sums = np.sum([expected_correlations(S, T, t) for t in TEMPERATURES], axis=0)
  np.testing.assert_allclose([parts["classes"], parts["batch"]], sums, rtol=1e-5)


def test_published_form_multiplies_by_the_shares_and_repeats_the_weak_view():
  parts = computed(selection="share", strong_temperatures=(3.0,), repeated_temperatures=(6.0,))
  p = softmax(T)
  share = np.mean(p.max(axis=1) <= np.percentile(p.max(axis=1), 50))
  of_classes = np.mean(p.sum(axis=0) <= np.percentile(p.sum(axis=0), 50))
  instances = share * kl(S, T, TEMPERATURES) + kl(STRONG_S, STRONG_T, (3.0,)) + kl(S, T, (6.0,))
  np.testing.assert_allclose(parts["instances"], instances, rtol=1e-5)
  plain = computed()
  np.testing.assert_allclose(parts["classes"], of_classes * plain["classes"], rtol=1e-5)
  np.testing.assert_allclose(parts["batch"], share * plain["batch"], rtol=1e-5)


@pytest.mark.parametrize("percentile", [0.0, 30.0, 50.0, 100.0])
@pytest.mark.parametrize("count", [1, 5, 6])
def test_shares_are_those_of_numpys_percentile_of_what_counts(count, percentile):
  where = np.arange(6) < count
  logits = np.where(where[:, None], T, np.nan)
  p = softmax(T[:count])
  wanted = [np.mean(x <= np.percentile(x, percentile)) for x in (p.max(axis=1), p.sum(axis=0))]
  np.testing.assert_allclose(shares_of(logits, percentile, None, where), wanted, rtol=1e-6)


@pytest.mark.parametrize("counting", [12, 7])
def test_value_and_gradient_on_four_devices_equal_the_global_batch(counting):
  where = np.arange(12) < counting  # the last device may have none that count
  weights, inputs, strong = draw(3, 4), draw(12, 3, seed=1), draw(12, 3, seed=2)
  targets = draw(12, 4, seed=3)

  def gradient(weights, inputs, strong, targets, where, axis_name):
    def loss(weights):
      views = (inputs @ weights, targets, strong @ weights, -targets)
      options = {"selection": "share", "temperatures": (2.0,), "axis_name": axis_name}
      parts = multi_level(*map(Output, views), where=where, **options)
      return sum(terms.total for terms in parts.values())

    found = jax.value_and_grad(loss)(weights)
    return found if axis_name is None else jax.lax.pmean(found, axis_name)

  split = [x.reshape(4, 3, *x.shape[1:]) for x in (inputs, strong, targets, where)]
  step = functools.partial(gradient, axis_name="batch")
  found = jit(jax.vmap(step, axis_name="batch", in_axes=(None, 0, 0, 0, 0)))(weights, *split)
  whole = jit(functools.partial(gradient, axis_name=None))
  kept = [x[where] for x in (inputs, strong, targets, where)]
  for one, other in zip(found, whole(weights, *kept), strict=True):
    np.testing.assert_allclose(one, np.broadcast_to(other, one.shape), rtol=1e-4, atol=1e-6)


def test_impossible_classes_have_probability_zero():
  student, teacher = (np.where(np.arange(4) == 3, -np.inf, x) for x in (S, T))
  for kernel in (class_correlation, batch_correlation):
    value, gradient = jax.value_and_grad(kernel)(student, teacher)
    wanted = kernel(S[:, :3], T[:, :3]) * (0.75 if kernel is class_correlation else 1.0)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: computed(selection="half"), "unknown selection 'half': known: none, share"),
    (lambda: computed(percentile=101.0), "percentile / 100 is 1.01: it must lie between 0 and 1"),
    (lambda: class_correlation(jnp.ones((2, 3, 4)), jnp.ones((2, 3, 4))), r"are not \(B, C\)"),
  ],
)
def test_error_for_wrong_arguments_names_them(call, message):
  with pytest.raises(ConfigError, match=message):
    call()
