"""Random crops resized to one size, and centre crops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxkd.data import augmentation, centre_crop, random_resized_crop
from jaxkd.data.crops import crop_and_resize, draw_box
from jaxkd.errors import ConfigError
from jaxkd.types import Batch

MANY, SIDE, SIZE = 2000, 16, 8
# The value of each pixel is (row, column) of its centre.
COORDINATES = jnp.stack(jnp.meshgrid(*[jnp.arange(SIDE) + 0.5] * 2, indexing="ij"), axis=-1)
shrink = jax.jit(functools.partial(crop_and_resize, size=SIZE))
crop = jax.jit(functools.partial(random_resized_crop, size=SIZE))


@pytest.fixture(scope="module")
def drawn():
  """(top, left) and (height, width) of boxes in a square of side 1."""
  draw = functools.partial(draw_box, height=1, width=1, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
  boxes = jnp.stack(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), MANY)), axis=-1)
  return np.asarray(boxes[:, :2]), np.asarray(boxes[:, 2:])


def test_boxes_lie_in_the_image_with_area_and_ratio_in_range(drawn):
  corners, sides = drawn
  assert (corners > -1e-3).all() and (corners + sides < 1 + 1e-3).all()
  share = sides.prod(1)
  ratio = sides[:, 1] / sides[:, 0]
  assert 0.08 - 1e-3 < share.min() < 0.1 and 0.9 < share.max() < 1 + 1e-3
  assert 3 / 4 - 1e-3 < ratio.min() < 0.77 and 1.3 < ratio.max() < 4 / 3 + 1e-3


def test_boxes_have_torchvisions_distribution(drawn):
  rng, expected = np.random.default_rng(0), []
  while len(expected) < 20_000:
    area, ratio = rng.uniform(0.08, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    sides = np.sqrt([area / ratio, area * ratio])
    if sides.max() <= 1:
      expected.append((*sides, *rng.uniform(size=2) * (1 - sides)))
  corners, sides = drawn
  found = np.concatenate([sides, corners], axis=1)
  for moment in (1, 2):
    differences = (found**moment).mean(0) - (np.asarray(expected) ** moment).mean(0)
    assert (abs(differences) < 0.025).all(), differences


@pytest.mark.parametrize(
  "box",
  [(0.0, 0.0, 16.0, 16.0), (2.3, 1.2, 13.1, 11.4), (5.5, 9.25, 4.5, 5.0), (3.0, 0.0, 6.0, 15.0)],
)
def test_resizing_a_box_equals_pillow(box):
  noise = np.random.default_rng(0).normal(size=(SIDE, SIDE)).astype(np.float32)
  top, left, height, width = box
  expected = Image.fromarray(noise).resize(
    (SIZE, SIZE), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
  )
  found = shrink(noise[..., None], jnp.asarray(box))
  np.testing.assert_allclose(found[..., 0], np.asarray(expected), atol=1e-4)


def test_box_that_never_fits_is_the_middle_of_the_image():
  found = draw_box(jax.random.key(0), 8, 16, (1.0, 1.0), (1.0, 1.0))
  np.testing.assert_allclose(found, (0, 4, 8, 8))


def test_crop_depends_on_the_images_own_key_alone():
  keys = jax.random.split(jax.random.key(0), 6)
  images = jnp.broadcast_to(COORDINATES, (6, SIDE, SIDE, 2))
  whole = crop(keys, images)
  np.testing.assert_allclose(crop(keys[3:], images[3:]), whole[3:], atol=1e-5)
  assert len(np.unique(whole[:, 0, 0, 0])) == 6


def test_resized_crop_excludes_padded_crop():
  images = jnp.broadcast_to(COORDINATES, (6, SIDE, SIDE, 2))
  labels = jnp.arange(6)
  batch = Batch(images, labels, jnp.ones(6), labels)
  augment = augmentation(resized_crop=SIZE, flip=True, num_classes=6)
  shapes = jax.eval_shape(augment, jax.random.key(0), batch)
  assert shapes.inputs.shape == (6, SIZE, SIZE, 2)
  with pytest.raises(ConfigError, match="crop: expected 0 with resized_crop=8, got 4"):
    augmentation(crop=4, resized_crop=8, num_classes=6)
  with pytest.raises(ConfigError, match="resized_crop: expected an integer >= 0, got -1"):
    augmentation(resized_crop=-1, num_classes=6)


def test_centre_crop_is_the_middle_of_the_image():
  middle = centre_crop(COORDINATES[None], size=6)
  np.testing.assert_array_equal(middle[0, :, 0, 0], np.arange(5, 11) + 0.5)
  np.testing.assert_array_equal(middle[0, 0, :, 1], np.arange(5, 11) + 0.5)
  np.testing.assert_array_equal(centre_crop(COORDINATES[None], size=SIDE), COORDINATES[None])
  with pytest.raises(ConfigError, match="size: expected at most 16, got 17"):
    centre_crop(COORDINATES[None], size=17)
  with pytest.raises(ConfigError, match="size: expected an integer >= 1, got 0"):
    centre_crop(COORDINATES[None], size=0)
