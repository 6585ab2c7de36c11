"""What augmentations share: a key per image, and sizes that are checked."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.errors import ConfigError
from jaxkd.types import Array, Batch


def per_image(key: Array, images: Array) -> Array:
  """One typed key for each of the images (B, H, W, C), from one or from as many.

  Raises:
    TypeError: if the key is not typed.
    ValueError: if there are keys, but not one per image, or the images have another rank.
  """
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    raise TypeError(f"key: expected typed keys (jax.random.key), got {key.dtype} {key.shape}")
  if images.ndim != 4:
    raise ValueError(f"images: expected (B, H, W, C), got {images.shape}")
  if key.ndim == 0:
    return jax.random.split(key, len(images))
  if key.shape != (len(images),):
    raise ValueError(f"key: {key.shape} for images {images.shape}; expected one, or one per image")
  return key


def fold(keys: Array, number: int) -> Array:
  """The keys, each with a number folded in."""
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def check_size(name: str, size: int, least: int = 0) -> None:
  """Raises a ConfigError naming the option unless it is an integer of at least `least`."""
  if isinstance(size, bool) or not isinstance(size, int) or size < least:
    raise ConfigError(f"{name}: expected an integer >= {least}, got {size!r}")


def view_keys(rng: Array, batch: Batch, views: int) -> Array:
  """One key per image (B,): of its example and view, whenever and wherever that comes.

  Args:
    rng: the stage's PRNG key data.
    batch: with `epochs`, by which the views take turns.
    views: how many there are.
  """
  # No step has this number.
  key = jax.random.fold_in(jax.random.wrap_key_data(rng), jnp.uint32(2**32 - 1))
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  return jax.vmap(jax.random.fold_in)(fold(key, batch.indices), batch.epochs % views)
