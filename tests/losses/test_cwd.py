"""CWD: definition, invariances, masks of positions, impossible classes, options."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.losses import channel_divergence, channel_wise, match_sizes
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
MSE = {"divergence": "mse"}


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


def softmax(x, axis):
  power = np.exp(x - x.max(axis, keepdims=True))
  return power / power.sum(axis, keepdims=True)


def expected(student, teacher, norm="channel", divergence="kl", temperature=1.0):
  """The loss by the paper's formula and the published code's reductions."""
  s, t = (np.float64(x) / temperature for x in (student, teacher))
  batch, rows, columns, channels = s.shape
  axes = {"channel": (1, 2), "spatial": (3,)}.get(norm)
  if axes:
    s, t = softmax(s, axes), softmax(t, axes)
  elif norm == "channel_mean":
    s, t = s.mean((1, 2)), t.mean((1, 2))
  elif norm == "first":
    s, t = s[:1], t[:1]
  total = (t * np.log(t / s)).sum() if divergence == "kl" else ((s - t) ** 2).sum()
  count = channels if norm in ("channel", "channel_mean") else rows * columns
  return total * temperature**2 / (batch * count)


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"temperature": 4.0},
    {"norm": "spatial", "temperature": 2.0},
    *({"norm": norm, **MSE} for norm in ("channel", "spatial", "channel_mean", "none", "first")),
  ],
)
def test_loss_equals_the_definition(options):
  s, t = draw(3, 4, 2, 5), draw(3, 4, 2, 5, seed=1)
  value = jit(functools.partial(channel_divergence, **options))(s, t)
  np.testing.assert_allclose(value, expected(s, t, **options), rtol=1e-5)


def test_a_constant_added_to_a_channel_changes_nothing():
  s, t = draw(3, 4, 4, 5), draw(3, 4, 4, 5, seed=1)
  moved = channel_divergence(s + draw(3, 1, 1, 5, seed=2), t - draw(3, 1, 1, 5, seed=3))
  np.testing.assert_allclose(moved, channel_divergence(s, t), rtol=1e-5)
  assert channel_divergence(t + draw(3, 1, 1, 5), t) < 1e-12 < channel_divergence(s, t)


def test_larger_maps_are_pooled_to_the_smaller():
  s, t = draw(2, 4, 4, 3), draw(2, 2, 2, 3, seed=1)
  np.testing.assert_allclose(
    channel_divergence(s, t), channel_divergence(*match_sizes(s, t)), rtol=1e-6
  )


@pytest.mark.parametrize(
  "options", [{"temperature": 2.0}, {"norm": "spatial"}, {"norm": "channel_mean", **MSE}]
)
def test_positions_that_do_not_count_are_left_out(options):
  s, t = draw(3, 4, 4, 2), draw(3, 4, 4, 2, seed=1)
  where = np.zeros((3, 4, 4), bool)
  where[0, :, :3] = where[2, :, :3] = True  # the second example has none
  wanted = channel_divergence(s[::2, :, :3], t[::2, :, :3], **options)
  s[~where] = t[~where] = np.nan
  compute = jit(jax.value_and_grad(functools.partial(channel_divergence, **options)))
  value, gradient = compute(s, t, where=where)
  np.testing.assert_allclose(value, wanted, rtol=1e-5)
  assert np.isfinite(gradient).all() and not gradient[~where].any()


@pytest.mark.parametrize("norm", ["channel", "spatial"])
def test_an_impossible_class_adds_nothing(norm):
  s, t = draw(2, 3, 3, 4), draw(2, 3, 3, 4, seed=1)
  wanted = channel_divergence(s[..., :3], t[..., :3], norm=norm)
  s[..., 3] = t[..., 3] = -np.inf
  value, gradient = jit(jax.value_and_grad(functools.partial(channel_divergence, norm=norm)))(s, t)
  factor = 3 / 4 if norm == "channel" else 1  # the mean is over all channels
  np.testing.assert_allclose(value, factor * wanted, rtol=1e-5)
  assert np.isfinite(gradient).all() and not gradient[..., 3].any()


@pytest.mark.parametrize("scale", [1e8, 1e-18])
@pytest.mark.parametrize("norm", ["channel", "spatial"])
def test_extreme_maps_have_finite_gradients(scale, norm):
  s, t = np.float32(scale) * draw(1, 3, 3, 4), np.float32(scale) * draw(1, 3, 3, 4, seed=1)
  value, gradient = jit(jax.value_and_grad(functools.partial(channel_divergence, norm=norm)))(s, t)
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_stages_are_features_and_none_is_the_logits():
  maps, logits = draw(2, 4, 4, 3), draw(2, 2, 2, 5)
  s, t = Output(logits, {"x": maps}), Output(-logits, {"x": -maps})
  assert channel_wise(s, t).feature == 0
  np.testing.assert_allclose(
    channel_wise(s, t).logit, expected(logits, -logits, temperature=4.0), 1e-5
  )
  terms = channel_wise(s, t, stages=["x"], stage_weights=[2.0])
  assert terms.logit == 0
  np.testing.assert_allclose(terms.feature, 2 * expected(maps, -maps, temperature=4.0), 1e-5)


@pytest.mark.parametrize(
  ("shape", "options", "message"),
  [
    ((2, 3), {}, r"student \(2, 3\) is not a feature map"),
    ((2, 2, 2, 3), {"norm": "chanel"}, "unknown norm 'chanel'"),
    ((2, 2, 2, 3), {"divergence": "l2"}, "unknown divergence 'l2'"),
    (
      (2, 2, 2, 3),
      {"norm": "none"},
      "norm is 'none': divergence 'kl' needs one of channel, spatial",
    ),
    ((2, 2, 2, 3), {**MSE}, "temperature is 4.0: divergence 'mse' has none"),
  ],
)
def test_error_for_wrong_arguments_names_them(shape, options, message):
  z = Output(logits=jnp.ones(shape))
  with pytest.raises(ConfigError, match=message):
    channel_wise(z, z, **options)
