"""Layouts of weights in PyTorch that no shape tells apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.models import from_torch

RNG = np.random.default_rng(0)


def transposed_convolution(images, weight, stride):
  """PyTorch's nn.ConvTranspose2d without padding: every input adds its multiple of the kernel."""
  (count, _, height, width), (_, outputs, *kernel) = images.shape, weight.shape
  size = [(n - 1) * stride + k for n, k in zip((height, width), kernel, strict=True)]
  result = np.zeros((count, outputs, *size))
  for i, j in np.ndindex(height, width):
    patch = np.einsum("ni,iokl->nokl", images[:, :, i, j], weight)
    rows, columns = (slice(n * stride, n * stride + k) for n, k in zip((i, j), kernel, strict=True))
    result[:, :, rows, columns] += patch
  return result


class Upsampled(nn.Module):
  inputs_first: bool
  outputs: int

  @nn.compact
  def __call__(self, images):
    layer = nn.ConvTranspose(
      self.outputs,
      (3, 2),
      strides=(2, 2),
      padding="VALID",
      use_bias=False,
      transpose_kernel=not self.inputs_first,
      name="up",
    )
    return layer(nn.Conv(3, (1, 1), name="conv")(images))


@pytest.mark.parametrize("inputs_first", [True, False])
@pytest.mark.parametrize("outputs", [3, 5])
def test_transposed_convolutions_are_those_of_torch(inputs_first, outputs):
  model = Upsampled(inputs_first, outputs)
  weight = RNG.normal(size=(3, outputs, 3, 2)).astype(np.float32)
  state = {
    "conv.weight": np.eye(3, dtype=np.float32)[:, :, None, None],
    "conv.bias": np.zeros(3, "f"),
  }
  names = {"conv": "conv", "deconv": "up"}
  variables = from_torch(
    {**state, "deconv.weight": weight}, model, names=names, image_shape=(5, 4, 3)
  )
  images = RNG.normal(size=(2, 5, 4, 3)).astype(np.float32)
  found = jax.jit(model.apply)(variables, images)
  want = transposed_convolution(images.transpose(0, 3, 1, 2), weight, 2).transpose(0, 2, 3, 1)
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_the_layout_of_a_convolution_is_refused_for_a_transposed_one():
  weight = np.zeros((5, 3, 3, 2), np.float32)
  state = {"conv.weight": np.zeros((3, 3, 1, 1), "f"), "conv.bias": np.zeros(3, "f")}
  with pytest.raises(ConfigError, match=r"up/kernel: \(3, 2, 5, 3\) from up.weight, expected"):
    from_torch({**state, "up.weight": weight}, Upsampled(True, 5), names={"(conv|up)": r"\1"})


class Flat(nn.Module):
  order: str

  @nn.compact
  def __call__(self, images):
    x = nn.max_pool(nn.Conv(2, (1, 1), name="conv")(images), (2, 2), (2, 2))
    if self.order == "torch":
      x = jnp.transpose(x, (0, 3, 1, 2))
    if self.order == "pooled":
      x = x.mean((1, 2), keepdims=True)
    return nn.Dense(3, name="fc")(nn.relu(nn.relu(x).reshape(len(x), -1)))


def flat(order, features=8):
  state = {"conv.weight": np.ones((2, 3, 1, 1), "f"), "conv.bias": np.zeros(2, "f")}
  state |= {"fc.weight": RNG.normal(size=(3, features)), "fc.bias": np.zeros(3, "f")}
  return from_torch(state, Flat(order), names={"(conv|fc)": r"\1"}, image_shape=(4, 4, 3))


def test_a_map_that_is_flattened_in_another_order_is_refused():
  with pytest.raises(ConfigError, match=r"the input of fc is a map of \(2, 2, 2\), flattened as"):
    flat("flax")


@pytest.mark.parametrize(("order", "features"), [("torch", 8), ("pooled", 2)])
def test_maps_in_the_order_of_torch_are_loaded(order, features):
  assert flat(order, features)["params"]["fc"]["kernel"].shape == (features, 3)


class Signal(nn.Module):
  order: str

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(2, (3,), name="conv")(x)
    if self.order == "tokens":  # an attention-like product, after which positions come first
      x = x + jnp.einsum("bij,bjc->bic", x @ x.swapaxes(1, 2), x)
    x = nn.max_pool(nn.relu(x), (2,), (2,))
    if self.order == "torch":
      x = jnp.transpose(x, (0, 2, 1))
    return nn.Dense(3, name="fc")(x.reshape(len(x), -1))


def signal(order):
  state = {"conv.weight": np.ones((2, 4, 3), "f"), "conv.bias": np.zeros(2, "f")}
  state |= {"fc.weight": RNG.normal(size=(3, 8)), "fc.bias": np.zeros(3, "f")}
  shape = jax.ShapeDtypeStruct((8, 4), jnp.float32)
  return from_torch(state, Signal(order), names={"(conv|fc)": r"\1"}, image_shape=shape)


def test_a_signal_that_is_flattened_in_another_order_is_refused():
  message = r"is a map of \(4, 2\), flattened as \(L, C\), .* jnp.transpose\(x, \(0, 2, 1\)\)"
  with pytest.raises(ConfigError, match=message):
    signal("flax")
  for order in ("torch", "tokens"):
    assert signal(order)["params"]["fc"]["kernel"].shape == (8, 3)
