"""Strong augmentation of an image: two random operations of RandAugment, and a grey rectangle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd.data.keys import per_image
from jaxkd.errors import ConfigError
from jaxkd.types import Array

# Colour of the rectangle, in 0..1, and the largest share of the image's side that it covers.
_GREY = (125 / 255, 123 / 255, 114 / 255)
_LARGEST_HOLE = 0.5
_OPERATIONS_PER_IMAGE = 2


def strong_augmentation(
  key: Array, images: Array, *, mean: Sequence[float], std: Sequence[float]
) -> Array:
  """Apply two operations drawn per image, then a grey rectangle of random size.

  The operations, each with a uniform magnitude: contrast stretched to the whole range, brightness,
  saturation and contrast (each 0.05 to 0.95), equalisation, none, posterisation to 4 to 8 bits,
  rotation (30 degrees), sharpness (0.05 to 0.95), shear along x or y (0.3), inversion of values
  above a threshold, translation along x or y (0.3 of the side). Moved images are sampled at the
  nearest pixel, and black outside. The side of the rectangle is up to half the image's.

  Args:
    key: one key, or one per image.
    images: normalised (B, H, W, C) of one or three channels.
    mean: C numbers of the normalisation, for pixel values in 0..1.
    std: C numbers.

  Raises:
    ConfigError: for images of another number of channels.

  Source: RandAugment (Cubuk et al., NeurIPS 2020) as in FixMatch (Sohn et al., NeurIPS 2020) and in
  the code of multi-level logit distillation, whose operations work on bytes. Here pixel values are
  not rounded between operations.
  """
  if images.shape[-1] not in (1, 3):
    raise ConfigError(f"strong views: images {images.shape} must have one or three channels")
  shift, scale = (jnp.asarray(x, images.dtype).reshape(1, 1, -1) for x in (mean, std))

  def one(key: Array, image: Array) -> Array:
    pixels = jnp.clip(image * scale + shift, 0.0, 1.0)
    *keys, hole = jax.random.split(key, _OPERATIONS_PER_IMAGE + 1)
    for own in keys:
      which, magnitude = jax.random.split(own)
      number = jax.random.randint(which, (), 0, len(OPERATIONS))
      pixels = jax.lax.switch(number, OPERATIONS, pixels, jax.random.uniform(magnitude))
    return ((_with_hole(hole, pixels) - shift) / scale).astype(image.dtype)

  return jax.vmap(one)(per_image(key, images), images)


def _between(low: float, high: float, share: ArrayLike) -> Array:
  return low + (high - low) * jnp.asarray(share)


def _blend(other: Array, pixels: Array, share: Array) -> Array:
  """Return `other` and `pixels`, weighted by a factor of 0.05 to 0.95 for the pixels."""
  factor = _between(0.05, 0.95, share)
  return jnp.clip(other + factor * (pixels - other), 0.0, 1.0)


def _luma(pixels: Array) -> Array:
  """Return the brightness (H, W, 1), as PIL weights the colours."""
  weights = (0.299, 0.587, 0.114) if pixels.shape[-1] == 3 else (1.0,)
  of_colours = jnp.asarray(weights, pixels.dtype).reshape(1, 1, -1)
  return jnp.sum(pixels * of_colours, axis=-1, keepdims=True)


def _autocontrast(pixels: Array, share: Array) -> Array:
  low, high = (f(pixels, axis=(0, 1), keepdims=True) for f in (jnp.min, jnp.max))
  flat = high <= low
  return jnp.where(flat, pixels, (pixels - low) / jnp.where(flat, 1.0, high - low))


def _brightness(pixels: Array, share: Array) -> Array:
  return _blend(jnp.zeros_like(pixels), pixels, share)


def _saturation(pixels: Array, share: Array) -> Array:
  return _blend(jnp.broadcast_to(_luma(pixels), pixels.shape), pixels, share)


def _contrast(pixels: Array, share: Array) -> Array:
  return _blend(jnp.full_like(pixels, jnp.mean(_luma(pixels))), pixels, share)


def _sharpness(pixels: Array, share: Array) -> Array:
  padded = jnp.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
  height, width = pixels.shape[:2]
  shifted = {(i, j): padded[i : i + height, j : j + width] for i in range(3) for j in range(3)}
  smooth = (sum(shifted.values()) + 4 * shifted[1, 1]) / 13
  rows, columns = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
  inner = (rows > 0) & (rows < height - 1) & (columns > 0) & (columns < width - 1)
  return _blend(jnp.where(inner, smooth, pixels), pixels, share)


def _equalize(pixels: Array, share: Array) -> Array:
  levels = jnp.round(pixels * 255).astype(jnp.int32)

  def channel(values: Array) -> Array:
    counts = jnp.zeros(256, jnp.int32).at[values.reshape(-1)].add(1)
    last = jnp.max(jnp.where(counts > 0, jnp.arange(256), -1))
    step = (jnp.sum(counts) - counts[last]) // 255
    below = jnp.cumsum(counts) - counts
    table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step == 0, values, table[values])

  equal = jax.vmap(channel, in_axes=-1, out_axes=-1)(levels)
  return equal.astype(pixels.dtype) / 255


def _none(pixels: Array, share: Array) -> Array:
  return pixels


def _posterize(pixels: Array, share: Array) -> Array:
  # Whole numbers of bits, rounded down: 8 has no share of the draws, as in the published code.
  unit = 2.0 ** (8 - jnp.floor(_between(4.0, 8.0, share)))
  return jnp.floor(jnp.round(pixels * 255) / unit) * unit / 255


def _solarize(pixels: Array, share: Array) -> Array:
  return jnp.where(pixels * 255 < _between(0.0, 256.0, share), pixels, 1.0 - pixels)


def _moved(pixels: Array, matrix: Sequence[Sequence[ArrayLike]]) -> Array:
  """Return the image whose pixel (x, y) is the nearest one to matrix (x, y, 1) of the original."""
  pixels = jnp.asarray(pixels)
  height, width = pixels.shape[:2]
  y, x = jnp.mgrid[0.5:height, 0.5:width]
  columns, rows = (jnp.floor(a * x + b * y + c).astype(jnp.int32) for a, b, c in matrix)
  inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
  found = pixels[jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)]
  return jnp.where(inside[..., None], found, 0.0)


def _rotate(pixels: Array, share: Array) -> Array:
  angle = jnp.deg2rad(_between(-30.0, 30.0, share))
  sine, cosine = jnp.sin(angle), jnp.cos(angle)
  y, x = pixels.shape[0] / 2, pixels.shape[1] / 2
  across = (cosine, sine, x - cosine * x - sine * y)
  return _moved(pixels, (across, (-sine, cosine, y + sine * x - cosine * y)))


def _shear_x(pixels: Array, share: Array) -> Array:
  return _moved(pixels, ((1.0, _between(-0.3, 0.3, share), 0.0), (0.0, 1.0, 0.0)))


def _shear_y(pixels: Array, share: Array) -> Array:
  return _moved(pixels, ((1.0, 0.0, 0.0), (_between(-0.3, 0.3, share), 1.0, 0.0)))


def _translate_x(pixels: Array, share: Array) -> Array:
  distance = _between(-0.3, 0.3, share) * pixels.shape[1]
  return _moved(pixels, ((1.0, 0.0, distance), (0.0, 1.0, 0.0)))


def _translate_y(pixels: Array, share: Array) -> Array:
  distance = _between(-0.3, 0.3, share) * pixels.shape[0]
  return _moved(pixels, ((1.0, 0.0, 0.0), (0.0, 1.0, distance)))


# (pixels (H, W, C) in 0..1, share of the magnitude's range) -> pixels.
OPERATIONS: tuple[Callable[[Array, Array], Array], ...] = (
  _autocontrast,
  _brightness,
  _saturation,
  _contrast,
  _equalize,
  _none,
  _posterize,
  _rotate,
  _sharpness,
  _shear_x,
  _shear_y,
  _solarize,
  _translate_x,
  _translate_y,
)


def _with_hole(key: Array, pixels: Array) -> Array:
  """Return the image with a grey rectangle around a pixel, clipped at the border."""
  height, width, channels = pixels.shape
  of_size, of_row, of_column = jax.random.split(key, 3)
  side = _LARGEST_HOLE * width * jax.random.uniform(of_size)
  top = jnp.floor(jnp.maximum(0.0, height * jax.random.uniform(of_row) - side / 2))
  left = jnp.floor(jnp.maximum(0.0, width * jax.random.uniform(of_column) - side / 2))
  rows, columns = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
  hole = (rows >= top) & (rows <= top + side) & (columns >= left) & (columns <= left + side)
  grey = jnp.asarray(_GREY if channels == 3 else _GREY[:1], pixels.dtype).reshape(1, 1, -1)
  return jnp.where(hole, grey, pixels)
