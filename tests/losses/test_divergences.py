"""Generalised divergences: definitions in numpy, limits, top-k targets, impossible classes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.losses import (
  knowledge_distillation,
  soft_target_divergence,
  soft_target_kl,
  top_k_divergence,
)
from jaxkd.losses._divergences import BETAS, DIVERGENCES, log_mixture
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

S, T = 2.0 * np.random.default_rng(0).normal(size=(2, 4, 6)).astype("float32")
each_divergence = pytest.mark.parametrize("name", DIVERGENCES)


@functools.cache
def compiled(name, kernel=soft_target_divergence, **options):
  bound = functools.partial(kernel, divergence=name, **options)
  return jit(jax.value_and_grad(lambda s, *t: bound(s, *t)))


def softmax(z, temperature=1.0):
  z = np.asarray(z, np.float64) / temperature
  p = np.exp(z - z.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def kl(a, b):
  with np.errstate(divide="ignore", invalid="ignore"):
    return np.where(a > 0, a * (np.log(a) - np.log(b)), 0.0).sum(-1)


def by_hand(name, p, q, beta=None):
  """The mean divergence of probabilities, from the definitions."""
  b = BETAS.get(name, 0.0) if beta is None else beta
  middle = b * p + (1 - b) * q
  forward, reverse = kl(p, q), kl(q, p)
  found = {
    "forward": forward,
    "reverse": reverse,
    "symmetric": (1 - b) * forward + (b * reverse if b else 0.0),
    "jensen_shannon": b * kl(p, middle) + (1 - b) * kl(q, middle),
    "skewed_forward": kl(p, middle),
    "skewed_reverse": kl(q, (1 - b) * p + b * q),
    "total_variation": np.abs(p - q).sum(-1) / 2,
  }
  return found[name].mean()


def largest(p, q, k, missing):
  """Probabilities of the K classes that p has most of, and of the rest."""
  order = np.argsort(-p, axis=-1)[:, :k]
  kept = [np.take_along_axis(x, order, -1) for x in (p, q)]
  if missing == "renormalized":
    return [x / x.sum(-1, keepdims=True) for x in kept]
  p, q = (np.concatenate([x, 1 - x.sum(-1, keepdims=True)], -1) for x in kept)
  if missing == "impossible":
    p[:, -1] = 0.0
    p /= p.sum(-1, keepdims=True)
  return p, q


@each_divergence
@pytest.mark.parametrize("beta", [None, 0.0, 0.7])
def test_divergence_equals_the_definition(name, beta):
  if beta is not None and name not in BETAS:
    with pytest.raises(ConfigError, match=rf"beta is {beta}: divergence='{name}' has none"):
      soft_target_divergence(S, T, divergence=name, beta=beta)
    return
  value = compiled(name, beta=beta, temperature=3.0)(S, T)[0]
  reference = "forward" if (name, beta) == ("jensen_shannon", 0.0) else name
  expected = by_hand(reference, softmax(T, 3.0), softmax(S, 3.0), beta)
  np.testing.assert_allclose(value, 9 * expected, rtol=1e-5)


@each_divergence
@pytest.mark.parametrize(
  "missing",
  ["bucket", *(pytest.param(x, marks=pytest.mark.long) for x in ("renormalized", "impossible"))],
)
def test_divergence_of_the_largest_classes_equals_the_definition(name, missing):
  value = compiled(name, top_k=2, missing=missing)(S, T)[0]
  p, q = largest(softmax(T), softmax(S), 2, missing)
  with np.errstate(divide="ignore"):
    np.testing.assert_allclose(value, by_hand(name, p, q), rtol=1e-5)


@each_divergence
def test_value_and_gradient_are_zero_for_equal_logits(name):
  value, gradient = compiled(name)(T, T)
  assert value == 0 and not np.any(gradient)
  # Of the size of the difference, without cancellation: T is so large that both nearly agree.
  near = functools.partial(soft_target_divergence, divergence=name, temperature=300.0)
  value, gradient = jit(jax.value_and_grad(near))(S, T)
  with jax.enable_x64(True):
    s, t = (jnp.asarray(x, jnp.float64) for x in (S, T))
    exact, exact_gradient = jit(jax.value_and_grad(near))(s, t)
  np.testing.assert_allclose(value, exact, rtol=1e-4)
  if name != "total_variation":
    np.testing.assert_allclose(gradient, exact_gradient, rtol=1e-3, atol=1e-5)


def test_jensen_shannon_is_bounded_and_symmetric_in_its_sides():
  far = jnp.array([[80.0, 0.0], [0.0, 80.0]])
  value = soft_target_divergence(far, -far, divergence="jensen_shannon")
  np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
  for beta in (0.3, 0.5):
    one, other = (
      compiled("jensen_shannon", beta=b)(*pair)[0]
      for b, pair in ((beta, (S, T)), (1 - beta, (T, S)))
    )
    np.testing.assert_allclose(one, other, rtol=1e-5)
  assert soft_target_divergence(far, -far, divergence="total_variation") == 1.0
  # The skewed divergence is at most -log beta.
  value = soft_target_divergence(far, -far, divergence="skewed_forward", beta=0.1)
  np.testing.assert_allclose(value, -np.log(0.1), rtol=1e-5)


@each_divergence
def test_impossible_classes_of_both_sides_have_no_effect(name):
  s, t = (np.insert(z, 2, -np.inf, axis=1) for z in (S, T))
  value, gradient = compiled(name)(s, t)
  expected, expected_gradient = compiled(name)(S, T)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  assert not np.any(gradient[:, 2])
  np.testing.assert_allclose(np.delete(gradient, 2, 1), expected_gradient, rtol=1e-5, atol=1e-6)


@each_divergence
def test_a_class_that_is_impossible_on_one_side_gives_a_finite_gradient(name):
  alone = T.copy()
  alone[:, 3] = -np.inf
  value, gradient = compiled(name)(S, alone)
  assert np.isfinite(gradient).all() and np.isinf(value) == (name in ("reverse", "symmetric"))
  value, gradient = compiled(name)(alone, S)
  assert np.isfinite(gradient).all() and np.isinf(value) == (name in ("forward", "symmetric"))
  p, q = softmax(S), softmax(alone)
  value, gradient = compiled(name, drop_impossible=True)(alone, S)
  assert np.isfinite(gradient).all()
  if name == "forward":
    kept = np.delete(p * (np.log(p) - np.log(np.where(q > 0, q, 1))), 3, axis=1)
    np.testing.assert_allclose(value, kept.sum(-1).mean(), rtol=1e-5)


def test_cross_entropy_has_the_gradient_of_the_divergence():
  for name in ("forward", "skewed_forward", "symmetric"):
    value, gradient = compiled(name)(S, T)
    other, same = compiled(name, cross_entropy=True)(S, T)
    np.testing.assert_allclose(gradient, same, rtol=1e-5, atol=1e-7)
    p = softmax(T)
    share = 0.5 if name == "symmetric" else 1.0
    entropy = -(p * np.log(p)).sum(-1).mean()
    np.testing.assert_allclose(other - value, share * entropy, rtol=1e-5)


def test_mixture_of_logarithms_is_exact_at_its_ends():
  a = jnp.array([-1.0, -jnp.inf, 0.0, -jnp.inf, -3.0])
  b = jnp.array([-1.0, -jnp.inf, -jnp.inf, 0.0, -2.0])
  found = np.asarray(log_mixture(a, b, 0.25))
  assert found[0] == -1.0 and found[1] == -np.inf
  expected = np.log(0.25 * np.exp(a[2:]) + 0.75 * np.exp(b[2:]))
  np.testing.assert_allclose(found[2:], expected, rtol=1e-6)
  slopes = jax.grad(lambda a, b: jnp.sum(jnp.exp(log_mixture(a, b, 0.25))), argnums=(0, 1))(a, b)
  np.testing.assert_allclose(slopes[0], 0.25 * np.exp(a), rtol=1e-5)
  np.testing.assert_allclose(slopes[1], 0.75 * np.exp(b), rtol=1e-5)


def known(k, t=T, temperature=1.0):
  values, classes = jax.lax.top_k(jax.nn.log_softmax(jnp.asarray(t) / temperature), k)
  return np.asarray(classes), np.asarray(values)


@pytest.mark.parametrize("missing", ["bucket", "renormalized", "impossible"])
@pytest.mark.parametrize(
  "name",
  [
    "forward",
    *(pytest.param(x, marks=pytest.mark.long) for x in ("jensen_shannon", "skewed_reverse")),
  ],
)
def test_stored_largest_classes_give_what_the_whole_teacher_gives(missing, name):
  options = {"missing": missing, "temperature": 2.0}
  classes, values = known(3, temperature=2.0)
  value, gradient = compiled(name, top_k_divergence, target_temperature=2.0, **options)(
    S, classes, values
  )
  expected, expected_gradient = compiled(name, top_k=3, **options)(S, T)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
  if missing != "bucket":
    # Logits are as good, and at another temperature.
    logits = np.take_along_axis(T, classes, -1)
    other = compiled(name, top_k_divergence, **options)(S, classes, logits)[0]
    np.testing.assert_allclose(other, expected, rtol=1e-5)


def test_a_bucket_at_another_temperature_counts_as_one_class():
  classes, values = known(2)
  p = np.exp(values.astype(np.float64))
  p = np.concatenate([p, 1 - p.sum(-1, keepdims=True)], -1) ** (1 / 3.0)
  p /= p.sum(-1, keepdims=True)
  q = softmax(S, 3.0)
  kept = np.take_along_axis(q, classes, -1)
  q = np.concatenate([kept, 1 - kept.sum(-1, keepdims=True)], -1)
  value = top_k_divergence(S, classes, values, temperature=3.0)
  np.testing.assert_allclose(value, 9 * by_hand("forward", p, q), rtol=1e-5)


def test_largest_classes_that_are_all_classes_give_the_divergence_itself():
  classes, values = known(6)
  for name in ("forward", "jensen_shannon"):
    expected, expected_gradient = compiled(name)(S, T)
    for value, gradient in (
      compiled(name, top_k_divergence)(S, classes, values),
      compiled(name, top_k=6)(S, T),
    ):
      np.testing.assert_allclose(value, expected, rtol=1e-5, atol=2e-6)
      np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)
  # A student that is sure of the classes has a bucket of rounding size.
  sure = S.copy()
  sure[:, 0] = 200.0
  found = compiled("forward", top_k_divergence)(sure, *known(1, sure))
  np.testing.assert_allclose(found[0], 0.0, atol=1e-9)
  assert np.isfinite(found[1]).all()


def test_classes_without_a_value_belong_to_the_others():
  classes, values = known(2)
  padded = (
    np.pad(classes, ((0, 0), (0, 2))),
    np.pad(values, ((0, 0), (0, 2)), constant_values=-np.inf),
  )
  for missing in ("bucket", "renormalized", "impossible"):
    expected, gradient = compiled("forward", top_k_divergence, missing=missing)(S, classes, values)
    found, same = compiled("forward", top_k_divergence, missing=missing)(S, *padded)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(same, gradient, rtol=1e-5, atol=1e-7)


def test_a_class_out_of_range_is_not_a_number():
  classes, values = known(2)
  for wrong in (-1, 6):
    assert np.isnan(top_k_divergence(S, np.where(classes < 9, wrong, 0), values))


@pytest.mark.parametrize(
  "positions",
  [
    pytest.param(np.array([1, 0, 1, 0]), marks=pytest.mark.long),
    np.array([[1, 0], [1, 1]]),
  ],
)
def test_positions_that_do_not_count_are_left_out(positions):
  shape = (2, 2, 6) if positions.ndim == 2 else (4, 6)
  counted = positions.reshape(-1) != 0
  s, t = (np.where(counted[:, None], z, np.nan).reshape(shape) for z in (S, T))
  value = soft_target_divergence(s, t, divergence="reverse", where=positions)
  np.testing.assert_allclose(value, compiled("reverse")(S[counted], T[counted])[0], rtol=1e-6)
  classes, values = (x.reshape(*shape[:-1], 2) for x in known(2))
  value = top_k_divergence(s, classes, values, where=positions)
  expected = top_k_divergence(S[counted], *(x[counted] for x in known(2)))
  np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_forward_is_the_divergence_of_knowledge_distillation():
  for standardize in (False, True):
    options = {"temperature": 2.0, "standardize": standardize}
    assert soft_target_divergence(S, T, **options) == soft_target_kl(S, T, **options)
    found = knowledge_distillation(Output(S), Output(T), divergence="reverse", **options).total
    assert found == soft_target_divergence(S, T, divergence="reverse", **options)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"divergence": "backward"}, "unknown divergence 'backward'"),
    ({"divergence": "jensen_shannon", "beta": 1.5}, "beta is 1.5: it must lie between 0 and 1"),
    ({"divergence": "skewed_forward", "beta": 1.0}, "beta is 1.0: a skewed divergence is 0 there"),
    ({"divergence": "reverse", "cross_entropy": True}, "cross_entropy=True: divergence='reverse'"),
    ({"missing": "bin"}, "unknown missing 'bin'"),
    ({"top_k": 7}, "top_k is 7: expected 0 to 6, the number of classes"),
    ({"temperature": 0.0}, "temperature is 0.0"),
  ],
)
def test_error_for_a_wrong_option(options, message):
  with pytest.raises(ConfigError, match=message):
    soft_target_divergence(S, T, **options)


def test_error_for_classes_that_do_not_fit():
  classes, values = known(2)
  with pytest.raises(ConfigError, match=r"classes \(3, 2\) and values \(4, 2\) do not belong"):
    top_k_divergence(S, classes[:3], values)
  with pytest.raises(ConfigError, match="classes are float32: expected integers"):
    top_k_divergence(S, values, values)
