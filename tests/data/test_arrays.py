"""Data sets from arrays and .npz files."""

import numpy as np
import pytest

from jaxkd.data import UNLABELLED, from_arrays, from_npz, load
from jaxkd.errors import ConfigError

RNG = np.random.default_rng(0)
LABELS = np.arange(60) % 3
IMAGES = (60 * LABELS[:, None, None, None] + RNG.integers(0, 60, (60, 6, 5, 3))).astype(np.uint8)


def refused(words, images=IMAGES, labels=LABELS, **options):
  with pytest.raises(ConfigError) as caught:
    from_arrays(images, labels, **options)
  assert words in str(caught.value) and "\n" not in str(caught.value), str(caught.value)


def changed(array, row, value):
  array = np.array(array)
  array[row] = value
  return array


def test_parts_statistics_and_indices():
  data = from_arrays(IMAGES, LABELS, classes=["a", "b", "c"], seed=1)
  assert [len(part) for part in (data.train, data.validation, data.test)] == [43, 5, 12]
  assert (data.num_classes, data.class_names, data.image_shape) == (3, ("a", "b", "c"), (6, 5, 3))
  for part in (data.train, data.validation, data.test):
    np.testing.assert_array_equal(part.images, IMAGES[part.indices])
    np.testing.assert_array_equal(part.labels, LABELS[part.indices])
  whole = np.concatenate([data.train.images, data.validation.images]) / 255
  np.testing.assert_allclose(data.mean, whole.mean((0, 1, 2)), rtol=1e-9)
  np.testing.assert_allclose(data.std, whole.std((0, 1, 2)), rtol=1e-9)
  again = from_arrays(IMAGES, LABELS, seed=2)
  np.testing.assert_array_equal(again.test.indices, data.test.indices)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32", "int64", "uint64"])
def test_labels_of_any_integer_type(dtype):
  data = from_arrays(IMAGES, LABELS.astype(dtype)[:, None])
  assert data.train.labels.dtype == np.int32 and data.num_classes == 3
  assert from_arrays(IMAGES, LABELS.tolist()).num_classes == 3


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_are_stored_as_the_nearest_bytes(dtype):
  data = from_arrays((IMAGES / 255).astype(dtype), LABELS, validation=0)
  np.testing.assert_array_equal(data.train.images, IMAGES[data.train.indices])


def test_a_missing_axis_is_the_one_channel():
  assert from_arrays(IMAGES[..., 0], LABELS).image_shape == (6, 5, 1)
  assert from_arrays(np.repeat(IMAGES, 3, -1), LABELS).image_shape == (6, 5, 9)
  assert from_arrays(IMAGES, LABELS, image_size=4).image_shape == (4, 4, 3)


def test_splits_of_ones_own():
  data = from_arrays(IMAGES, LABELS, validation=(IMAGES[:6], LABELS[:6]), test=(IMAGES, LABELS))
  assert [len(part) for part in (data.train, data.validation, data.test)] == [60, 6, 60]


def test_unlabelled_images_are_in_the_training_split_alone():
  data = from_arrays(IMAGES, LABELS, unlabelled=IMAGES[:10], validation=0)
  assert len(data.train) == 48 + 10 and len(data.test) == 12
  assert (data.train.labels[48:] == UNLABELLED).all() and (data.train.labels[:48] >= 0).all()
  np.testing.assert_array_equal(data.train.indices[48:], np.arange(60, 70))
  both = from_arrays(IMAGES, LABELS, unlabelled=IMAGES[:10])
  alone = from_arrays(IMAGES, LABELS)
  assert len(both.train) == len(alone.train) + 10
  for part in ("validation", "test"):
    np.testing.assert_array_equal(getattr(both, part).indices, getattr(alone, part).indices)
  refused("unlabelled: images are (6, 4, 3), those of train (6, 5, 3)", unlabelled=IMAGES[:, :, :4])


@pytest.mark.parametrize(
  ("words", "labels"),
  [
    ("row 7 is -2, expected a class number >= 0", changed(LABELS, 7, -2)),
    ("row 7 is -1, expected a class number >= 0; images without labels", changed(LABELS, 7, -1)),
    ("row 3 is 18446744073709551615", changed(LABELS.astype(np.uint64), 3, 2**64 - 1)),
    ("row 3 is 2000000", changed(LABELS, 3, 2_000_000)),
    ("expected integers, got float64; labels.astype(int)", LABELS.astype(float)),
    ("expected integers, got float64", changed(LABELS.astype(float), 0, np.nan)),
    ("expected integers, got bool; labels.astype(int)", LABELS == 1),
    ("np.unique(labels, return_inverse=True)", np.array(["cat", "dog", "owl"])[LABELS]),
    ("labels.argmax(1)", np.eye(3, dtype=int)[LABELS]),
    ("images: 60 of them for 59 labels", LABELS[:-1]),
    ("name class 2 alone: expected at least 2", np.full(60, 2)),
    ("images: 60 of them for 0 labels", np.array([], int)),
    ("rows differ in shape", [[1], [1, 2]]),
  ],
)
def test_labels_that_are_no_classes_are_named(words, labels):
  refused(words, labels=labels)


@pytest.mark.parametrize(
  ("words", "images"),
  [
    ("image 4 has values that are not finite", changed(IMAGES / 255, (4, 0, 0, 0), np.nan)),
    ("image 5 has values that are not finite", changed(IMAGES / 255, (5, 0, 0, 0), np.inf)),
    ("got float64 in 0..", IMAGES.astype(float)),
    ("images.astype(np.uint8)", IMAGES.astype(np.int64)),
    ("expected uint8 or floats in 0..1, got float64 in -1..", IMAGES / 127.5 - 1),
    ("got bool", IMAGES > 90),
    ("got <U3", IMAGES.astype("<U3")),
    ("expected (N, H, W, C) or (N, H, W), got (60, 90)", IMAGES.reshape(60, -1)),
    ("images.transpose(0, 2, 3, 1)", IMAGES.transpose(0, 3, 1, 2)),
    ("images: there are none", IMAGES[:0]),
    ("expected (N, H, W, C) or (N, H, W), got (60, 0, 5, 3)", IMAGES[:, :0]),
    ("rows differ in shape", [IMAGES[0], IMAGES[0, :3]]),
    ("channel 1 has one value in all training images", IMAGES * np.array([1, 0, 1], np.uint8)),
  ],
)
def test_images_that_are_none_are_named(words, images):
  refused(words, images=images)


@pytest.mark.parametrize(
  ("words", "options"),
  [
    ("train labels: row 2 is 2, expected 0..1, as there are 2 classes", {"classes": 2}),
    ("train labels: row 2 is 2, expected 0..1", {"classes": ["a", "b"]}),
    ("expected different names", {"classes": ["a", "a", "b"]}),
    ("expected a number or a list of names", {"classes": "abc"}),
    ("test labels: row 0 is 5, expected 0..2", {"test": (IMAGES[:1], [5])}),
    ("test images: 2 of them for 1 labels", {"test": (IMAGES[:2], [1])}),
    ("test: expected (images, labels), got 1 values", {"test": (IMAGES,)}),
    ("test=0: expected a fraction or a count > 0", {"test": 0}),
    ("validation=-0.1: expected a fraction", {"validation": -0.1}),
    ("validation=1.5", {"validation": 1.5}),
    ("test='x'", {"test": "x"}),
    ("test=60: 60 of 60 examples", {"test": 60}),
    ("seed: expected an integer", {"seed": 0.5}),
    ("images are uint8 (6, 4, 3)", {"test": (IMAGES[:, :, :4], LABELS)}),
    ("image_size=5000", {"image_size": 5000}),
  ],
)
def test_options_out_of_range_are_named(words, options):
  refused(words, **options)


def test_classes_that_labels_do_not_use_are_allowed():
  assert from_arrays(IMAGES, LABELS, classes=5).num_classes == 5
  names, labels = np.unique(np.array(["owl", "cat", "dog"])[LABELS], return_inverse=True)
  assert from_arrays(IMAGES, labels, classes=names).class_names == ("cat", "dog", "owl")


SPLITS = {
  "keras": ("x_train", "y_train", "x_test", "y_test"),
  "medmnist": ("train_images", "train_labels", "test_images", "test_labels"),
  "plain": ("images", "labels", "test_images", "test_labels"),
}


@pytest.mark.parametrize("style", SPLITS)
def test_npz_in_the_usual_styles(tmp_path, style):
  arrays = dict(zip(SPLITS[style], (IMAGES, LABELS[:, None], IMAGES[:6], LABELS[:6]), strict=True))
  np.savez(tmp_path / "data.npz", **arrays)
  data = from_npz(tmp_path / "data.npz", validation=0)
  assert (len(data.train), len(data.test), data.validation) == (60, 6, None)
  np.testing.assert_array_equal(data.train.images, IMAGES)


def test_npz_with_names_validation_and_unlabelled_images(tmp_path):
  np.savez_compressed(
    tmp_path / "data.npz",
    train_images=IMAGES,
    train_labels=LABELS,
    val_images=IMAGES[:9],
    val_labels=LABELS[:9],
    unlabelled_images=IMAGES[:7],
    class_names=np.array(["a", "b", "c"]),
  )
  data = load(f"npz:{tmp_path}/data.npz", image_size=4)
  assert data.name == f"npz:{tmp_path}/data.npz" and data.class_names == ("a", "b", "c")
  assert (len(data.train), len(data.validation), len(data.test)) == (48 + 7, 9, 12)
  assert data.image_shape == (4, 4, 3)


def test_damaged_npz_files_are_named(tmp_path):
  file = tmp_path / "data.npz"

  def refuse(words):
    with pytest.raises(ConfigError) as caught:
      from_npz(file)
    assert words in str(caught.value) and str(file) in str(caught.value)

  refuse("there is no such file")
  file.write_bytes(b"text")
  refuse("is no .npz file of arrays")
  with file.open("wb") as opened:
    np.save(opened, IMAGES)
  refuse("holds one array, expected an .npz file")
  np.savez(file, images=IMAGES, labels=np.array([{"a": 1}] * 60, object))
  refuse("labels cannot be read: it holds Python objects")
  np.savez(file, images=IMAGES)
  refuse("has images, but no labels")
  np.savez(file, pictures=IMAGES)
  refuse("has pictures: expected images and labels, or x_train")
  np.savez(file, images=IMAGES, labels=LABELS, val_images=IMAGES[:9], val_labels=LABELS[:9])
  refuse("has val_images, which is not read beside images: expected names of images, labels, test_")
  np.savez(file, x_train=IMAGES, y_train=LABELS, x_valid=IMAGES[:9], y_valid=LABELS[:9])
  refuse("has x_valid, which is not read beside x_train: expected names of x_test, x_train, x_val")
  np.savez(file, images=IMAGES, labels=changed(LABELS, 9, -3))
  refuse("labels: row 9 is -3")
  whole = file.read_bytes()
  file.write_bytes(whole[: len(whole) // 2])
  refuse("is no .npz file of arrays")
  damaged = bytearray(whole)
  damaged[500:600] = bytes(100)
  file.write_bytes(damaged)
  refuse("images cannot be read: ")


def test_an_array_that_claims_to_be_huge_is_refused(tmp_path):
  import zipfile

  header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776, 64, 64, 3), }\n"
  content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
  with zipfile.ZipFile(tmp_path / "data.npz", "w") as file:
    file.writestr("images.npy", content)
    file.writestr("labels.npy", content)
  with pytest.raises(ConfigError, match="images cannot be read"):
    from_npz(tmp_path / "data.npz")
