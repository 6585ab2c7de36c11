"""Strong augmentation: ranges, single operations, and independence of the rest of the batch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.data import strong
from jaxkd.data.strong import OPERATIONS, strong_augmentation
from jaxkd.errors import ConfigError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype("float32") / 255


@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_keeps_the_shape_and_the_range(channels):
  pixels = jnp.asarray(PIXELS[..., :channels])

  @jax.jit
  def all_of_them(share):
    return [operation(pixels, share) for operation in OPERATIONS]

  for share in (0.0, 0.3, 0.99):
    for found in all_of_them(share):
      assert found.shape == pixels.shape and np.isfinite(found).all()
      assert found.min() >= 0 and found.max() <= 1


def test_operations_are_what_their_names_say():
  half = jnp.float32(0.5)
  np.testing.assert_allclose(strong._brightness(PIXELS, half), 0.5 * PIXELS, atol=1e-6)
  np.testing.assert_array_equal(np.round(strong._posterize(PIXELS, 0.0) * 255) % 16, 0)
  inverted = np.where(PIXELS * 255 < 128, PIXELS, 1 - PIXELS)
  np.testing.assert_allclose(strong._solarize(PIXELS, half), inverted, atol=1e-6)
  for still in (strong._rotate, strong._shear_x, strong._translate_y):
    np.testing.assert_array_equal(still(PIXELS, half), PIXELS)
  moved = strong._translate_x(PIXELS, half + 0.4 / 0.6)  # 0.4 of a range of 0.6: 2 of 5 pixels
  np.testing.assert_array_equal(moved[:, :3], PIXELS[:, 2:])
  assert not moved[:, 3:].any()
  stretched = strong._autocontrast(0.5 * PIXELS + 0.2, half)
  np.testing.assert_allclose(stretched.min((0, 1)), 0, atol=1e-6)
  np.testing.assert_allclose(stretched.max((0, 1)), 1, atol=1e-6)
  flat = np.full_like(PIXELS, 0.25)
  np.testing.assert_array_equal(strong._autocontrast(flat, half), flat)
  levels = np.repeat(np.arange(4, dtype="float32")[:, None, None], 1024, axis=1) / 255
  np.testing.assert_allclose(np.unique(strong._equalize(levels, half)), np.arange(4) / 3, atol=0.01)


def test_an_image_depends_on_its_own_key_alone_and_constants_become_other_images():
  augment = jax.jit(functools.partial(strong_augmentation, mean=MEAN, std=STD))
  images = (np.stack([PIXELS] * 4) - np.float32(MEAN)) / np.float32(STD)
  keys = jax.random.split(jax.random.key(0), 4)
  found = augment(keys, images)
  assert found.shape == images.shape and found.dtype == images.dtype
  np.testing.assert_array_equal(augment(keys[::-1], images)[::-1], found)
  assert len({image.tobytes() for image in np.asarray(found)}) == 4
  restored = np.asarray(found) * np.float32(STD) + np.float32(MEAN)
  assert restored.min() > -1e-5 and restored.max() < 1 + 1e-5


def test_other_numbers_of_channels_are_refused():
  with pytest.raises(ConfigError, match="must have one or three channels"):
    strong_augmentation(jax.random.key(0), jnp.ones((2, 4, 4, 2)), mean=MEAN, std=STD)
