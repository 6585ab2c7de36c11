"""Inner products of channels over the image, from which Gram and flow matrices are made."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

# XLA's CPU multiplies longer and narrow matrices at half the speed of several of this length.
_ROWS = 256
_NARROW = 128


def channel_products(x: jax.Array, y: jax.Array) -> jax.Array:
  """(B, C, C'): of every channel of x (B, H, W, C) with every channel of y (B, H, W, C')."""
  batch, *size, channels = x.shape
  widest = max(channels, y.shape[3])
  positions = size[0] * size[1]
  parts = positions // _ROWS if positions % _ROWS == 0 and widest <= _NARROW else 1
  # As matrices, not maps: XLA then also writes the gradients where they belong, without copies.
  x, y = (z.reshape(batch * parts, positions // parts, z.shape[3]) for z in (x, y))
  products = jnp.einsum("bpi,bpj->bij", x, y, precision=lax.Precision.HIGHEST)
  if parts == 1:
    return products
  return jnp.sum(products.reshape(batch, parts, channels, -1), axis=1)


@jax.custom_jvp
def channel_gram(x: jax.Array) -> jax.Array:
  """(B, C, C): of every channel of x (B, H, W, C) with every channel of x."""
  return channel_products(x, x)


@channel_gram.defjvp
def _channel_gram_jvp(primals, tangents):
  # One product, forwards and backwards, where `channel_products(x, x)` takes two.
  half = channel_products(primals[0], tangents[0])
  return channel_gram(*primals), half + jnp.swapaxes(half, 1, 2)


def squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
  """(B, C, C'): between every channel of x (B, H, W, C) and every channel of y (B, H, W, C')."""
  of_x, of_y = (jnp.sum(z * z, axis=(1, 2)) for z in (x, y))
  return of_x[:, :, None] + of_y[:, None, :] - 2.0 * channel_products(x, y)


def mean_outer_product(maps: jax.Array) -> jax.Array:
  """(B, HW, HW): the mean over channels of x x', for the channels x of maps (B, H, W, C)."""
  flat = maps.reshape(maps.shape[0], -1, maps.shape[3])
  outer = jnp.einsum("bpc,bqc->bpq", flat, flat, precision=lax.Precision.HIGHEST)
  return outer / maps.shape[3]
