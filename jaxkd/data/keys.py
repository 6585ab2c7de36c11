"""PRNG keys per image and the check of sizes, shared by all augmentations."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.errors import ConfigError
from jaxkd.types import Array, Batch


def per_image(key: Array, images: Array) -> Array:
  """Return one typed key per image (B, H, W, C), from one key or from one per image.

  Raises:
    TypeError: if the key is not typed.
    ValueError: if there are several keys but not one per image, or the images have another rank.
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
  """Fold a number into every key."""
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def check_size(name: str, size: int, least: int = 0) -> None:
  """Raise a ConfigError that names the option unless it is an integer of at least `least`."""
  if isinstance(size, bool) or not isinstance(size, int) or size < least:
    raise ConfigError(f"{name}: expected an integer >= {least}, got {size!r}")


def view_keys(rng: Array, batch: Batch, views: int) -> Array:
  """Return one key per image (B,), a function of its example and view alone.

  Args:
    rng: PRNG key data of the training phase.
    batch: batch with `epochs`; epoch e shows view e % views.
    views: number of views.
  """
  # No step has this number, so these keys differ from those of all steps.
  key = jax.random.fold_in(jax.random.wrap_key_data(rng), jnp.uint32(2**32 - 1))
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  return jax.vmap(jax.random.fold_in)(fold(key, batch.indices), batch.epochs % views)
