"""VisionTransformer: its grid, its positions, its attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.errors import ConfigError
from jaxkd.models import VisionTransformer
from tests.methods.one_step import jit
from tests.models.drawn import drawn

MODEL = VisionTransformer(patch=2, width=8, heads=2, depths=(1, 0, 0), num_classes=3)
IMAGE = (4, 6, 1)


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).normal(size=(2, *IMAGE)).astype(np.float32)


@pytest.fixture(scope="module")
def variables(images):
  return drawn(MODEL, images)


@pytest.fixture(scope="module")
def output(variables, images):
  return jit(MODEL.apply)(variables, images)


def shapes(model, *image):
  images = jax.ShapeDtypeStruct((2, *image), jnp.float32)
  return jax.eval_shape(model.init_with_output, jax.random.key(0), images)


def test_tokens_keep_the_grid_of_patches():
  for name, patch in (("vit_tiny", 4), ("vit_tiny_p2", 2)):
    model = models.create(name, num_classes=3)
    output, _ = shapes(model, 8, 16, 1)
    for stage in ("stem", "stage1", "stage2", "stage3"):
      assert output.features[stage].shape == (2, 8 // patch, 16 // patch, 64)
    assert output.features["pooled"].shape == (2, 64)


def test_variables_do_not_depend_on_the_image_size():
  assert shapes(MODEL, 4, 6, 1)[1] == shapes(MODEL, 10, 2, 1)[1]


@pytest.mark.parametrize("size", [(3, 4), (4, 7), (1, 2)])
def test_images_that_the_patch_does_not_divide_are_refused(size):
  rows, columns = size
  message = f"images of {rows}x{columns} do not divide into patches of 2x2: .* multiples of 2"
  with pytest.raises(ConfigError, match=message):
    shapes(MODEL, rows, columns, 1)


@pytest.mark.parametrize(("width", "heads"), [(4, 1), (10, 2), (16, 3)])
def test_width_that_heads_do_not_divide_is_refused(width, heads):
  with pytest.raises(ConfigError, match=f"width is {width}: .* multiple of 4 and of the {heads} h"):
    shapes(MODEL.clone(width=width, heads=heads), *IMAGE)


def test_positions_are_sines_and_cosines_of_column_and_row():
  wide = MODEL.clone(width=16)
  blank = np.zeros((1, 10, 12, 1), np.float32)
  variables = drawn(wide, blank)
  encode = jit(lambda v, x: wide.apply(v, x, to_stage="stem", method="encode").features["stem"])
  found = np.asarray(encode(variables, blank)[0]) - variables["params"]["patch_embedding"]["bias"]
  periods = 10_000 ** (np.arange(4) / 3)  # from 1 to 10000, evenly spaced in the logarithm
  for row, column in ((0, 0), (1, 0), (4, 5)):
    x, y = column / periods, row / periods
    expected = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)])
    np.testing.assert_allclose(found[row, column], expected, atol=1e-5)


def test_block_equals_a_numpy_reference(variables, output):
  """The reference is plain numpy, head by head."""
  p = jax.tree.map(np.float64, variables["params"]["stage1_0"])

  def norm(name, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p[name]["scale"] + p[name]["bias"]

  def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"]

  for image in range(2):
    x = np.float64(output.features["stem"][image]).reshape(-1, 8)
    y = norm("attention_norm", x)
    query, key, value = (dense(p["attention"][n], y) for n in ("query", "key", "value"))
    heads = []
    for channels in (slice(0, 4), slice(4, 8)):
      scores = np.exp(query[:, channels] @ key[:, channels].T / 2)
      heads.append(scores / scores.sum(-1, keepdims=True) @ value[:, channels])
    x = x + dense(p["attention"]["out"], np.concatenate(heads, axis=-1))
    y = dense(p["mlp_in"], norm("mlp_norm", x))
    gelu = y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    x = x + dense(p["mlp_out"], gelu)
    found = output.features["stage1"][image].reshape(-1, 8)
    np.testing.assert_allclose(found, x, rtol=1e-3, atol=1e-4)


def test_blocks_are_equivariant_to_permutations_of_the_tokens(variables, output):
  stem = np.asarray(output.features["stem"])
  moved = stem[:, ::-1, ::-1].swapaxes(1, 2)  # another grid of the same tokens
  resumed = jit(lambda v, x: MODEL.apply(v, x, "stem", method="resume"))(variables, moved)
  expected = np.asarray(output.features["stage3"])[:, ::-1, ::-1].swapaxes(1, 2)
  np.testing.assert_allclose(resumed.features["stage3"], expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(resumed.logits, output.logits, rtol=1e-4, atol=1e-5)


def test_every_parameter_has_a_gradient_that_stays_finite_for_large_inputs(variables, images):
  def loss(params, images):
    output = MODEL.apply({"params": params}, images)
    return (output.logits * jnp.arange(6.0).reshape(2, 3)).sum()

  gradients = jit(jax.grad(loss))
  for leaf in jax.tree.leaves(gradients(variables["params"], 1e4 * images)):
    assert np.all(np.isfinite(leaf))
  found = gradients(variables["params"], images)
  # A common shift of all keys does not change the attention.
  found["stage1_0"]["attention"]["key"].pop("bias")
  for path, leaf in jax.tree.leaves_with_path(found):
    assert np.abs(leaf).max() > 1e-4, jax.tree_util.keystr(path)
