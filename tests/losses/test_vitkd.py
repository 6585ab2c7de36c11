"""ViTKD: definition, the masked tokens of the adapter, prefixes, maps as tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.adapters import TokenGenerator
from jaxkd.errors import ConfigError
from jaxkd.losses import vit_distillation
from jaxkd.types import Output


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


def tokens(seed, masked=None):
  names = ("low1", "low2", "high")
  features = {name: draw(2, 4, 3, seed=seed + i) for i, name in enumerate(names)}
  return Output(features=features if masked is None else {**features, "masked": masked})


def test_loss_equals_the_definition():
  masked = np.array([[1, 0, 1, 0], [0, 1, 1, 1]])
  s, t = tokens(0, masked), tokens(10)
  squares = {name: (s.features[name] - t.features[name]) ** 2 for name in t.features}
  low = (squares["low1"] + squares["low2"]).sum() / 2
  high = (masked[..., None] * squares["high"]).sum() / 2 / 0.4
  value = vit_distillation(s, t, low_weight=2.0, high_weight=3.0, masked=0.4).feature
  np.testing.assert_allclose(value, 2 * low + 3 * high, rtol=1e-5)
  shallow = vit_distillation(s, t, low_weight=2.0, high_weight=0.0).feature
  np.testing.assert_allclose(shallow, 2 * low, rtol=1e-5)
  deep = vit_distillation(s, t, low=(), high_weight=1.0, masked=0.4).feature
  np.testing.assert_allclose(deep, high, rtol=1e-5)


def compared(adapter, student, teacher, seed=0):
  keys = {"params": jax.random.key(0), "dropout": jax.random.key(seed)}
  variables = adapter.init(keys, (student, teacher, None), False)
  return variables, adapter.apply(variables, (student, teacher, None), True, rngs=keys)


def test_adapter_replaces_the_share_of_tokens_and_leaves_out_prefixes():
  student = Output(features={"a": draw(3, 11, 4), "b": draw(3, 11, 4, seed=1)})
  teacher = Output(features={"a": draw(3, 3, 3, 6), "b": draw(3, 10, 6, seed=1)})
  pairs = (("a", "a"),)
  adapter = TokenGenerator(pairs, ("b", "b"), (2, 1), 6, True, 0.3)
  variables, (ours, theirs) = compared(adapter, student, teacher)
  assert set(variables["params"]) == {
    "align_low1", "align_high", "generation1", "generation2", "mask_token"
  }  # fmt: skip
  assert {name: x.shape for name, x in ours.features.items()} == {
    "low1": (3, 9, 6), "high": (3, 9, 6), "masked": (3, 9)
  }  # fmt: skip
  np.testing.assert_array_equal(ours.features["masked"].sum(1), 3)  # 9 - int(9 * 0.7)
  np.testing.assert_array_equal(theirs.features["low1"], teacher.features["a"].reshape(3, 9, 6))
  np.testing.assert_array_equal(theirs.features["high"], teacher.features["b"][:, 1:])
  other = compared(adapter, student, teacher, seed=1)[1][0]
  assert (ours.features["masked"] != other.features["masked"]).any()


def test_a_replaced_token_has_no_effect():
  side = Output(features={"a": draw(1, 4, 3)})
  adapter = TokenGenerator((), ("a", "a"), (0, 0), 3, False, 0.5)
  variables = adapter.init(jax.random.key(0), (side, side, None), False)
  noise = jnp.array([[0.1, 0.9, 0.3, 0.7]])

  def generated(x):
    sides = Output(features={"a": x}), side
    return adapter.apply(variables, *sides, noise, method="compared")[0].features["high"].sum()

  gradient = jax.grad(generated)(side.features["a"])
  assert not gradient[0, 1::2].any() and gradient[0, ::2].any()


def test_error_for_wrong_arguments_names_them():
  with pytest.raises(ConfigError, match="masked is 0: it must be greater than 0"):
    vit_distillation(tokens(0), tokens(1), masked=0)
  side = Output(features={"a": draw(1, 5, 3)})
  adapter = TokenGenerator((), ("a", "a"), (0, 0), 3, False)
  with pytest.raises(ConfigError, match="5 tokens: expected a square number of patches"):
    adapter.init(jax.random.key(0), (side, side, None), False)
