"""Rectangles of images at one size: drawn for training, the middle for evaluation."""

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
  """Cuts out a rectangle drawn per image and resizes it to (size, size).

  The rectangle's share of the image is uniform in `scale`, the logarithm of its width over its
  height in that of `ratio`, its place uniform. A rectangle that does not fit is drawn again, up to
  ten times; after that it is the largest in the middle whose ratio is in range. Resizing is
  linear, and averages where it shrinks.

  Args:
    key: one key, or one per image.
    images: (B, H, W, C).
    size: of the result, (B, size, size, C).
    scale: least and largest share of the area.
    ratio: least and largest width over height.

  Raises:
    ConfigError: if size is not an integer >= 1.

  Source: torchvision's RandomResizedCrop, which the published ImageNet recipes use; there the
  sides of a rectangle are rounded to pixels. Here the images come cut and resized already
  (`jaxkd.data.shrink`), so a rectangle is a share of their central square, not of the original
  photograph, and a small one has fewer pixels than it would have there.
  """
  check_size("size", size, least=1)
  keys = per_image(key, images)
  height, width = images.shape[1:3]

  def cut(key: Array, image: Array) -> Array:
    return resized(image, rectangle(key, height, width, scale, ratio), size)

  return jax.vmap(cut)(keys, images)


def rectangle(
  key: Array, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Array, Array, Array, Array]:
  """(top, left, height, width) of the first of ten rectangles that lies in (height, width)."""
  tries = 10
  areas, ratios, place = jax.random.split(key, 3)
  area = height * width * jax.random.uniform(areas, (tries,), minval=scale[0], maxval=scale[1])
  lowest, highest = math.log(ratio[0]), math.log(ratio[1])
  root = jnp.exp(0.5 * jax.random.uniform(ratios, (tries,), minval=lowest, maxval=highest))
  tall, wide = jnp.sqrt(area) / root, jnp.sqrt(area) * root
  fits = (tall <= height) & (wide <= width)
  first, found = jnp.argmax(fits), fits.any()
  # Of the image's own proportions, or of the nearest that are in range.
  largest = (min(height, width / ratio[0]), min(width, height * ratio[1]))
  tall, wide = (
    jnp.where(found, side[first], whole) for side, whole in zip((tall, wide), largest, strict=True)
  )
  down, right = jnp.where(found, jax.random.uniform(place, (2,)), 0.5)
  return down * (height - tall), right * (width - wide), tall, wide


def resized(image: Array, box: tuple[Array, Array, Array, Array], size: int) -> Array:
  """The rectangle (top, left, height, width) of an image (H, W, C) as (size, size, C).

  Linear, with a wider filter where it shrinks, as Pillow does it.
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
  """The middle (B, size, size, C) of images (B, H, W, C).

  Raises:
    ConfigError: if size is not an integer in 1..min(H, W).
  """
  check_size("size", size, least=1)
  height, width = images.shape[1:3]
  if size > min(height, width):
    raise ConfigError(f"size: expected at most {min(height, width)}, got {size}")
  # As torchvision rounds.
  top, left = round((height - size) / 2), round((width - size) / 2)
  return images[:, top : top + size, left : left + size]
