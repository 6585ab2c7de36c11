"""Augmentation as pure functions of (key, images).

Images are float (B, H, W, C). A key is one typed PRNG key (`jax.random.key`), or one per image
(B,): the result for an image then depends on its own key alone, however a batch is split over
devices.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd.data.crops import random_resized_crop
from jaxkd.data.keys import check_size, fold, per_image
from jaxkd.errors import ConfigError
from jaxkd.shapes import shown
from jaxkd.types import Array, Batch

Augmentation = Callable[[Array, Batch], Batch]


def normalize(images: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
  """Return (images / 255 - mean) / std per channel, float32.

  Args:
    images: (..., C) uint8. Another type raises, so that no image is normalised twice.
    mean: C numbers, for pixel values scaled to 0..1.
    std: C numbers.

  >>> normalize(jnp.full((1, 1, 1, 1), 255, jnp.uint8), [0.5], [0.25]).item()
  2.0
  """
  if images.dtype != jnp.uint8:
    raise TypeError(f"images: expected uint8 as stored, got {images.dtype} {images.shape}")
  if not len(mean) == len(std) == images.shape[-1]:
    raise ValueError(f"images {images.shape} with {len(mean)} means and {len(std)} deviations")
  shape = (1,) * (images.ndim - 1) + (-1,)
  # One multiplication and one addition per pixel.
  scale = jnp.reshape(1.0 / (255.0 * jnp.asarray(std, jnp.float32)), shape)
  shift = jnp.reshape(jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32), shape)
  return images.astype(jnp.float32) * scale - shift


def pad_crop(
  key: Array,
  images: Array,
  *,
  padding: int = 4,
  mode: str = "constant",
  fill: ArrayLike | Sequence[float] = 0.0,
) -> Array:
  """Pad every side and crop to the original size at a position drawn per image.

  Args:
    key: one key, or one per image.
    images: (B, H, W, C).
    padding: pixels on every side.
    mode: mode of `jnp.pad`: "constant", "reflect" (the AT authors), "edge", ...
    fill: value of a constant padding, a number or one per channel. 0 is the mean colour of
      normalised images (the multi-exit authors). -mean / std is black before normalisation, the
      padding of torchvision and RepDistiller.

  Raises:
    ConfigError: if padding is not an integer >= 0.
  """
  check_size("padding", padding)
  keys = per_image(key, images)
  batch, height, width, channels = images.shape
  if mode == "constant":
    colour = jnp.asarray(fill, images.dtype).reshape(1, 1, 1, -1)
    size = (batch, height + 2 * padding, width + 2 * padding, channels)
    canvas = jnp.broadcast_to(colour, size)
    padded = jax.lax.dynamic_update_slice(canvas, images, (0, padding, padding, 0))
  else:
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode=mode)

  def cut(key: Array, image: Array) -> Array:
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(image, (top, left, 0), (height, width, channels))

  return jax.vmap(cut)(keys, padded)


def flip(key: Array, images: Array) -> Array:
  """Mirror each image left to right with probability 1/2. Images: (B, H, W, C)."""
  keys = per_image(key, images)
  flipped = jax.vmap(jax.random.bernoulli)(keys).reshape(-1, 1, 1, 1)
  return jnp.where(flipped, images[:, :, ::-1, :], images)


def cutout(key: Array, images: Array, *, size: int) -> Array:
  """Zero a square of side `size` around a pixel drawn per image, clipped at the image's border.

  Images: (B, H, W, C). Source: DeVries and Taylor 2017; zero is the mean of normalised images.
  For odd sizes the square is one pixel smaller in the authors' code; here its side is `size`.

  Raises:
    ConfigError: if size is not an integer >= 0.
  """
  check_size("size", size)
  keys = per_image(key, images)
  height, width = images.shape[1:3]

  def hole(key: Array) -> Array:
    row, column = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
    rows, columns = jnp.arange(height) - row + size // 2, jnp.arange(width) - column + size // 2
    return ((rows >= 0) & (rows < size))[:, None] & ((columns >= 0) & (columns < size))[None, :]

  holes = jax.vmap(hole)(keys)
  return jnp.where(holes[..., None], jnp.zeros((), images.dtype), images)


def mixup(
  key: Array, images: Array, labels: Array, *, alpha: float, axis_name: str | None = None
) -> tuple[Array, Array]:
  """Mix each example with the next one of the global batch, the last with the first.

  x_i <- l_i x_i + (1 - l_i) x_{i+1}, y likewise, l_i ~ Beta(alpha, alpha) drawn per image. Batches
  are shuffled, so the next example is a random one.

  Args:
    key: one key, or one per image.
    images: (B, H, W, C).
    labels: class probabilities (B, K), one-hot for class numbers.
    alpha: parameter of the beta distribution, > 0.
    axis_name: device axis over which the global batch is split, in order.

  Returns:
    The mixed images and labels; labels still sum to 1.

  Raises:
    ConfigError: if alpha is not > 0.

  Source: Zhang et al., ICLR 2018. The authors' code draws one l per batch and a permutation; one
  l per pair is their equation 1 and makes results independent of how the batch is split.
  """
  if isinstance(alpha, (int, float)) and not alpha > 0:
    raise ConfigError(f"alpha: expected a number > 0, got {alpha}")
  if labels.ndim != 2 or len(labels) != len(images):
    raise ValueError(f"labels: expected ({len(images)}, classes), got {labels.shape}")
  keys = per_image(key, images)
  share = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)
  return _mix(share, images, axis_name), _mix(share, labels, axis_name)


def _mix(share: Array, values: Array, axis_name: str | None) -> Array:
  partners = _partners(values, axis_name)
  share = share.astype(values.dtype).reshape(-1, *(1,) * (values.ndim - 1))
  return share * values + (1 - share) * partners


def _partners(values: Array, axis_name: str | None) -> Array:
  """Return the value of each example's successor in the global batch; the last wraps around."""
  first = values[:1]
  if axis_name is not None:
    # Of the other devices, only the next one's first example is needed.
    size = jax.lax.axis_size(axis_name)
    first = jax.lax.ppermute(first, axis_name, [(i, (i - 1) % size) for i in range(size)])
  return jnp.concatenate([values[1:], first])


def augmentation(
  *,
  crop: int = 0,
  resized_crop: int = 0,
  flip: bool = False,
  cutout: int = 0,
  mixup: float = 0.0,
  num_classes: int,
  fill: ArrayLike | Sequence[float] = 0.0,
  axis_name: str | None = None,
) -> Augmentation:
  """Return one function of (key, normalised batch): crop, flip, cutout and mixup, in this order.

  Args:
    crop: padding of `pad_crop`; 0 for none.
    resized_crop: size of `random_resized_crop`, which replaces `pad_crop`; 0 for none.
    flip: True mirrors half of the images.
    cutout: side of the square; 0 for none.
    mixup: alpha; 0 for none. Labels become class probabilities (B, num_classes). A mixture of a
      labelled and an unlabelled example is unlabelled: it has the smaller weight of the two.
    num_classes: number of classes, for mixup.
    fill: padding colour of `pad_crop`.
    axis_name: device axis of `mixup`.

  Returns:
    (key or keys (B,), Batch) -> Batch. Each operation folds its own number into the keys, so
    switching one off does not change the draws of the others.

  Raises:
    ConfigError: naming the option that is out of range. When traced with any of the operations, for
      inputs that are no images, or labels of every pixel.
  """
  check_size("crop", crop)
  check_size("resized_crop", resized_crop)
  if crop and resized_crop:
    raise ConfigError(f"crop: expected 0 with resized_crop={resized_crop}, got {crop}")
  check_size("cutout", cutout)
  if not isinstance(flip, bool):
    raise ConfigError(f"flip: expected True or False, got {flip!r}")
  if isinstance(mixup, bool) or not isinstance(mixup, (int, float)) or not 0 <= mixup < jnp.inf:
    raise ConfigError(f"mixup: expected a number >= 0, got {mixup!r}")
  # An operation's position is folded into the keys; a skipped operation keeps its position.
  cut = functools.partial(pad_crop, padding=crop, fill=fill) if crop else None
  if resized_crop:
    cut = functools.partial(random_resized_crop, size=resized_crop)
  operations = (
    cut,
    _mirror if flip else None,
    functools.partial(_erase, size=cutout) if cutout else None,
  )
  blend = functools.partial(_blend, alpha=mixup, axis_name=axis_name) if mixup else None

  def augment(key: Array, batch: Batch) -> Batch:
    if not any((cut, flip, cutout, mixup)):
      return batch
    _check_images(batch)
    if batch.multi_label and mixup:
      raise ConfigError(f"mixup={mixup}: expected 0 with multi-hot labels, which would be mixed")
    keys, images = per_image(key, batch.inputs), batch.inputs
    for place, operation in enumerate(operations):
      if operation is not None:
        images = operation(fold(keys, place), images)
    if blend is None:
      return dataclasses.replace(batch, inputs=images)
    one_hot = jax.nn.one_hot(batch.labels, num_classes, dtype=images.dtype)
    mixed, labels = blend(fold(keys, len(operations)), images, one_hot)
    weights = jnp.minimum(batch.weights, _partners(batch.weights, axis_name))
    if batch.mask is not None:
      # Padding is never mixed in: an example whose partner is padding is left unmixed.
      counts = jnp.any((jnp.asarray(batch.mask) != 0).reshape(len(images), -1), axis=1)
      both = counts & _partners(counts, axis_name)
      mixed = jnp.where(both[:, None, None, None], mixed, images)
      labels = jnp.where(both[:, None], labels, one_hot)
      weights = jnp.where(both, weights, batch.weights)
    return dataclasses.replace(batch, inputs=mixed, labels=labels, weights=weights)

  return augment


def _check_images(batch: Batch) -> None:
  """Raise a ConfigError for inputs that are no images, or labels that would not move with them."""
  images = batch.inputs
  if not (
    hasattr(images, "ndim") and images.ndim == 4 and jnp.issubdtype(images.dtype, jnp.floating)
  ):
    raise ConfigError(
      f"augmentation: expected images (B, H, W, C) of floating point, got {shown(images)}"
    )
  labels = jnp.asarray(batch.labels)
  if labels.ndim > 1 and not batch.multi_label and jnp.issubdtype(labels.dtype, jnp.integer):
    raise ConfigError(
      f"augmentation: expected labels (B,), got {labels.shape}: labels of pixels do not change "
      "with the images"
    )


# Inside `augmentation`, the options flip, cutout and mixup shadow the functions of these names.
_mirror, _erase, _blend = flip, cutout, mixup
