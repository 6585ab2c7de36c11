import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd.data import UNLABELLED, augmentation, cutout, flip, mixup, normalize, pad_crop
from jaxkd.errors import ConfigError
from jaxkd.types import Batch

B, H, W, C = 8, 5, 6, 2
# No two pixels are equal and none is zero.
IMAGES = jnp.arange(1, B * H * W * C + 1, dtype=jnp.float32).reshape(B, H, W, C)
LABELS = jnp.arange(B) % 3
ONE_HOT = jax.nn.one_hot(LABELS, 3)
BATCH = Batch(IMAGES, LABELS, jnp.ones(B), jnp.arange(B))

seeds = st.integers(0, 10**6).map(jax.random.key)
crop = jax.jit(functools.partial(pad_crop, padding=2, fill=(-1.0, -2.0)))
mirror = jax.jit(flip)
erase = jax.jit(functools.partial(cutout, size=3))
blend = jax.jit(functools.partial(mixup, alpha=0.4))
everything = jax.jit(augmentation(crop=2, flip=True, cutout=3, mixup=0.4, num_classes=3))

ALONE = {"crop": crop, "flip": mirror, "cutout": erase}


@given(key=seeds)
def test_crops_are_windows_of_the_padded_image(key):
  padded = np.empty((B, H + 4, W + 4, C), np.float32)
  padded[...] = [-1, -2]
  padded[:, 2:-2, 2:-2] = IMAGES
  for image, source in zip(np.asarray(crop(key, IMAGES)), padded, strict=True):
    windows = [source[i : i + H, j : j + W] for i in range(5) for j in range(5)]
    assert any((image == window).all() for window in windows)


def test_crop_positions_are_uniform():
  images = jnp.broadcast_to(jnp.arange(9.0).reshape(1, 3, 3, 1), (9000, 3, 3, 1))
  centre = jax.jit(functools.partial(pad_crop, padding=1))(jax.random.key(0), images)[:, 1, 1, 0]
  counts = np.bincount(np.asarray(centre, int), minlength=9)
  assert (abs(counts - 1000) < 150).all(), counts  # five standard deviations


def test_crop_without_padding_is_the_identity():
  np.testing.assert_array_equal(pad_crop(jax.random.key(0), IMAGES, padding=0, fill=7.0), IMAGES)


def test_reflected_padding_adds_no_new_values():
  cropped = pad_crop(jax.random.key(0), IMAGES, padding=2, mode="reflect")
  for image, source in zip(np.asarray(cropped), np.asarray(IMAGES), strict=True):
    assert set(image.ravel()) <= set(source.ravel())


@given(key=seeds)
def test_flipping_twice_with_one_key_is_the_identity(key):
  once = mirror(key, IMAGES)
  np.testing.assert_array_equal(mirror(key, once), IMAGES)
  mirrored = (once == IMAGES[:, :, ::-1]).all((1, 2, 3))
  same = (once == IMAGES).all((1, 2, 3))
  assert (mirrored ^ same).all(), "an image is mirrored left to right or left alone"


def test_half_of_the_images_are_flipped():
  images = jnp.broadcast_to(jnp.arange(2.0).reshape(1, 1, 2, 1), (4000, 1, 2, 1))
  share = flip(jax.random.key(0), images)[:, 0, 0, 0].mean()
  assert abs(share - 0.5) < 0.04


@given(key=seeds)
def test_cutout_zeroes_one_square_around_a_pixel_and_nothing_else(key):
  erased = np.asarray(erase(key, IMAGES))
  for image, source in zip(erased, np.asarray(IMAGES), strict=True):
    hole = image == 0
    rows, columns, _ = np.nonzero(hole)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert hole.sum() == height * width * C, "a rectangle through all channels"
    assert 2 <= height <= 3 and 2 <= width <= 3, "a 3x3 square, clipped at the border"
    np.testing.assert_array_equal(image[~hole], source[~hole])


def test_cutout_of_size_zero_is_the_identity():
  np.testing.assert_array_equal(cutout(jax.random.key(0), IMAGES, size=0), IMAGES)


# 2000 examples whose neighbours, including the last and the first, have different labels, so an
# example's share of the mixture is the probability of its label.
MANY = jnp.arange(4000.0).reshape(2000, 2, 1, 1)
MANY_LABELS = jnp.arange(2000) % 3


@settings(max_examples=10)
@given(key=seeds)
def test_mixup_is_a_convex_combination_with_the_next_example(key):
  images, labels = blend(key, MANY, jax.nn.one_hot(MANY_LABELS, 3))
  np.testing.assert_allclose(labels.sum(1), 1, rtol=1e-6)
  share = np.asarray(labels)[np.arange(2000), MANY_LABELS].reshape(-1, 1, 1, 1)
  assert (share >= 0).all() and (share <= 1).all()
  mixed = share * MANY + (1 - share) * jnp.roll(MANY, -1, axis=0)
  np.testing.assert_allclose(images, mixed, rtol=1e-4, atol=1e-2)


def test_mixup_draws_a_share_per_image_from_beta():
  labels = blend(jax.random.key(0), MANY, jax.nn.one_hot(MANY_LABELS, 3))[1]
  share = np.asarray(labels)[np.arange(2000), MANY_LABELS]
  assert abs(share.mean() - 0.5) < 0.04
  assert abs(share.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.01  # of Beta(a, a): 1 / (4 (2a + 1))


@pytest.mark.parametrize("name", ALONE)
def test_per_image_keys_make_results_independent_of_the_batch(name):
  keys = jax.random.split(jax.random.key(1), B)
  whole = ALONE[name](keys, IMAGES)
  halves = [ALONE[name](keys[part], IMAGES[part]) for part in (slice(0, 4), slice(4, 8))]
  np.testing.assert_array_equal(whole, jnp.concatenate(halves))
  assert not jnp.array_equal(whole, IMAGES)


def test_augmentation_over_devices_equals_that_of_the_whole_batch():
  devices, keys = 4, jax.random.split(jax.random.key(1), B)
  options = {"crop": 2, "flip": True, "cutout": 3, "mixup": 0.4, "num_classes": 3}
  split = jax.pmap(augmentation(**options, axis_name="device"), axis_name="device")

  def part(x):
    return x.reshape(devices, B // devices, *x.shape[1:])

  batch = dataclasses.replace(BATCH, weights=jnp.ones(B).at[4].set(0))
  result = split(part(keys), jax.tree.map(part, batch))
  result = jax.tree.map(lambda x: x.reshape(B, *x.shape[2:]), result)
  chex.assert_trees_all_close(result, everything(keys, batch), rtol=1e-6)


def test_mixture_with_an_unlabelled_example_is_unlabelled():
  unlabelled = jnp.array([3, 4, 7])
  batch = dataclasses.replace(
    BATCH,
    labels=LABELS.at[unlabelled].set(UNLABELLED),
    weights=jnp.ones(B).at[unlabelled].set(0),
  )
  mixed = everything(jax.random.split(jax.random.key(3), B), batch)
  # 2 is mixed with 3, and 6 with 7.
  np.testing.assert_array_equal(mixed.weights, [1, 1, 0, 0, 0, 1, 0, 0])
  assert jnp.isfinite(mixed.labels).all()
  np.testing.assert_allclose(mixed.labels[mixed.weights > 0].sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("name", ALONE)
def test_jit_does_not_change_results(name):
  eager = {
    "crop": functools.partial(pad_crop, padding=2, fill=(-1.0, -2.0)),
    "flip": flip,
    "cutout": functools.partial(cutout, size=3),
  }
  key = jax.random.key(4)
  np.testing.assert_array_equal(eager[name](key, IMAGES), ALONE[name](key, IMAGES))


def test_augmentation_switched_off_is_the_identity():
  same = augmentation(num_classes=3)(jax.random.key(0), BATCH)
  chex.assert_trees_all_equal(same, BATCH)


def test_only_mixup_makes_labels_soft():
  keys = jax.random.split(jax.random.key(1), B)
  assert everything(keys, BATCH).labels.shape == (B, 3)
  plain = augmentation(flip=True, num_classes=3)(keys, BATCH)
  chex.assert_trees_all_equal(plain.labels, BATCH.labels)
  chex.assert_trees_all_equal(plain.indices, BATCH.indices)


def test_disabling_one_operation_keeps_the_draws_of_others():
  key = jax.random.key(2)
  both = augmentation(crop=2, flip=True, num_classes=3)(key, BATCH).inputs
  only_crop = augmentation(crop=2, num_classes=3)(key, BATCH).inputs
  mirrored = (both == only_crop[:, :, ::-1]).all((1, 2, 3))
  same = (both == only_crop).all((1, 2, 3))
  assert (mirrored | same).all() and mirrored.any() and same.any()


def test_normalize_is_exact_per_channel_and_refuses_normalised_images():
  stored = jnp.array([[[[0, 255], [51, 102]]]], jnp.uint8)
  result = normalize(stored, (0.5, 0.25), (0.5, 0.25))
  assert result.dtype == jnp.float32
  np.testing.assert_allclose(result, [[[[-1, 3], [-0.6, 0.6]]]], atol=1e-6)
  with pytest.raises(TypeError, match="expected uint8 as stored, got float32"):
    normalize(result, (0.5, 0.25), (0.5, 0.25))
  with pytest.raises(ValueError, match=r"images \(1, 1, 2, 2\) with 1 means and 2 deviations"):
    normalize(stored, (0.5,), (0.5, 0.25))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_augmentation_keeps_the_dtype(dtype):
  images = IMAGES.astype(dtype)
  options = {"crop": 2, "flip": True, "cutout": 3, "mixup": 0.4, "num_classes": 3}
  shapes = jax.eval_shape(
    augmentation(**options), jax.random.key(0), Batch(images, LABELS, LABELS, LABELS)
  )
  assert shapes.inputs.dtype == dtype and shapes.labels.dtype == dtype


@pytest.mark.parametrize(
  ("option", "value"),
  [
    ("crop", -1),
    ("crop", 1.5),
    ("cutout", -2),
    ("cutout", True),
    ("mixup", -0.1),
    ("mixup", float("nan")),
    ("mixup", True),
    ("flip", 1),
  ],
)
def test_errors_name_bad_options(option, value):
  with pytest.raises(ConfigError, match=f"{option}: expected .* got {value}"):
    augmentation(**{option: value}, num_classes=3)


def test_errors_name_bad_arrays():
  key = jax.random.key(0)
  with pytest.raises(TypeError, match="key: expected typed keys"):
    flip(jnp.zeros(2, jnp.uint32), IMAGES)
  with pytest.raises(ValueError, match=r"key: \(3,\) for images \(8, 5, 6, 2\)"):
    flip(jax.random.split(key, 3), IMAGES)
  with pytest.raises(ValueError, match=r"images: expected \(B, H, W, C\), got \(5, 6, 2\)"):
    flip(key, IMAGES[0])
  with pytest.raises(ValueError, match=r"labels: expected \(8, classes\), got \(8,\)"):
    mixup(key, IMAGES, LABELS, alpha=1.0)
  with pytest.raises(ConfigError, match="alpha: expected a number > 0, got 0"):
    mixup(key, IMAGES, ONE_HOT, alpha=0)
