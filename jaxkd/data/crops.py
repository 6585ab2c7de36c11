"""Crops of one size: a random rectangle, resized, for training; the centre for evaluation."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxkd.data.keys import check_size, per_image
from jaxkd.errors import ConfigError
from jaxkd.types import Array


def random_resized_crop(
  key: Array,
  images: Array,
  *,
  size: int,
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Array:
  """Crop a rectangle drawn per image and resize it to (size, size).

  The rectangle's share of the image's area is uniform in `scale`, the logarithm of its aspect ratio
  (width over height) is uniform in log `ratio`, its position is uniform. A rectangle that does not
  fit is drawn again; after ten draws it is the largest centred one with a ratio in range. Resizing
  is linear, with antialiasing.

  Args:
    key: one key, or one per image.
    images: (B, H, W, C).
    size: side of the result, (B, size, size, C).
    scale: least and largest share of the area.
    ratio: least and largest aspect ratio.

  Raises:
    ConfigError: if size is not an integer >= 1.

  Source: torchvision's RandomResizedCrop, which the published ImageNet recipes use; it rounds the
  sides of a rectangle to pixels. The images here are already cropped and resized
  (`jaxkd.data.imagenet.shrink`), so a rectangle is a share of their central square, not of the
  original image, and a small one has fewer pixels than with torchvision.
  """
  check_size("size", size, least=1)
  keys = per_image(key, images)
  height, width = images.shape[1:3]

  def cut(key: Array, image: Array) -> Array:
    return crop_and_resize(image, draw_box(key, height, width, scale, ratio), size)

  return jax.vmap(cut)(keys, images)


def draw_box(
  key: Array, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Array, Array, Array, Array]:
  """Return (top, left, height, width) of the first of ten drawn rectangles that fits the image."""
  tries = 10
  areas, ratios, place = jax.random.split(key, 3)
  area = height * width * jax.random.uniform(areas, (tries,), minval=scale[0], maxval=scale[1])
  lowest, highest = math.log(ratio[0]), math.log(ratio[1])
  root = jnp.exp(0.5 * jax.random.uniform(ratios, (tries,), minval=lowest, maxval=highest))
  tall, wide = jnp.sqrt(area) / root, jnp.sqrt(area) * root
  fits = (tall <= height) & (wide <= width)
  first, found = jnp.argmax(fits), fits.any()
  # The largest rectangle with the image's own ratio, or the nearest one in range.
  largest = (min(height, width / ratio[0]), min(width, height * ratio[1]))
  tall, wide = (
    jnp.where(found, side[first], whole) for side, whole in zip((tall, wide), largest, strict=True)
  )
  down, right = jnp.where(found, jax.random.uniform(place, (2,)), 0.5)
  return down * (height - tall), right * (width - wide), tall, wide


def crop_and_resize(image: Array, box: tuple[Array, Array, Array, Array], size: int) -> Array:
  """Resize the rectangle (top, left, height, width) of an image (H, W, C) to (size, size, C).

  Interpolation is linear with a filter that widens when it shrinks, as in Pillow.
  """
  top, left, height, width = box
  down, across = size / height, size / width
  return jax.image.scale_and_translate(
    image,
    (size, size, image.shape[-1]),
    (0, 1),
    scale=jnp.stack([down, across]),
    translation=jnp.stack([-top * down, -left * across]),
    method="linear",
    antialias=True,
  )


def centre_crop(images: Array, *, size: int) -> Array:
  """Return the central (B, size, size, C) of images (B, H, W, C).

  Raises:
    ConfigError: if size is not an integer in 1..min(H, W).
  """
  check_size("size", size, least=1)
  height, width = images.shape[1:3]
  if size > min(height, width):
    raise ConfigError(f"size: expected at most {min(height, width)}, got {size}")
  # Rounded as in torchvision.
  top, left = round((height - size) / 2), round((width - size) / 2)
  return images[:, top : top + size, left : left + size]
