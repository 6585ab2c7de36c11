"""MLP: features are vectors from the first stage."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.errors import ConfigError
from jaxkd.models import MLP
from tests.methods.one_step import jit
from tests.models.drawn import drawn

MODEL = MLP(widths=(6, 5), num_classes=3)
IMAGES = np.random.default_rng(0).normal(size=(4, 2, 3, 2)).astype(np.float32)


def test_mlp_is_dense_layers_on_the_flattened_image():
  variables = drawn(MODEL, IMAGES)
  output = jit(MODEL.apply)(variables, IMAGES)
  x = IMAGES.reshape(4, 12)
  for stage, layer in (("stage1", "hidden_0"), ("stage2", "hidden_1")):
    p = variables["params"][layer]
    before = x @ p["kernel"] + p["bias"]
    x = np.maximum(before, 0)
    np.testing.assert_allclose(output.preactivations[stage], before, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.features[stage], x, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(output.features["pooled"], output.features["stage2"])
  p = variables["params"]["classifier"]
  np.testing.assert_allclose(output.logits, x @ p["kernel"] + p["bias"], rtol=1e-4, atol=1e-5)
  assert set(output.preactivations) == {"stage1", "stage2"}


def test_mlp_has_one_stage_per_width():
  assert MLP((6, 5, 4), 3).stages == MLP((6, 5, 4), 3).vectors
  assert MLP((6, 5, 4), 3).stages == ("stage1", "stage2", "stage3", "pooled")
  assert models.create("mlp", num_classes=3).widths == (256, 256)
  with pytest.raises(ConfigError, match="at least one hidden layer"):
    jax.eval_shape(MLP((), 3).init, jax.random.key(0), IMAGES)


def test_initial_hidden_kernels_have_he_variance():
  params = jit(MLP((400,), 3).init)(jax.random.key(0), jnp.ones((1, 10, 10, 4)))["params"]
  assert np.std(params["hidden_0"]["kernel"]) == pytest.approx(np.sqrt(2 / 400), rel=0.02)
  assert not params["hidden_0"]["bias"].any()
