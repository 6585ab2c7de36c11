"""Data sets from folders of pictures."""

import io
import os
import pathlib
import unicodedata

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from jaxkd.data import RecordExamples, from_folder, load
from jaxkd.data.imagenet import shrink
from jaxkd.data.pictures import decode
from jaxkd.errors import ConfigError
from tests.data.picture_folders import picture, write_split, write_splits


def refused(folder, words, **options):
  with pytest.raises(ConfigError) as caught:
    from_folder(folder, **options)
  message = str(caught.value)
  assert "\n" not in message and len(message) < 400
  assert words in message, message


def test_splits_and_classes_are_those_of_the_folders(tmp_path):
  write_splits(tmp_path, names=("train", "valid", "test"))
  (tmp_path / "train/cat/.DS_Store").write_bytes(b"x")
  (tmp_path / "train/.hidden").mkdir()
  (tmp_path / "train/notes.txt").write_text("x")
  data = from_folder(tmp_path)
  assert data.class_names == ("cat", "dog", "élan") and data.num_classes == 3
  assert [len(s) for s in (data.train, data.validation, data.test)] == [18, 18, 18]
  assert data.image_shape == (8, 10, 3)
  np.testing.assert_array_equal(data.train.labels, np.repeat([0, 1, 2], 6))
  for position, label, seed in ((0, 0, 0), (8, 1, 2), (17, 2, 5)):
    expected = np.asarray(picture(label, seed=seed))
    np.testing.assert_array_equal(data.train.fetch(np.array([position]))[0], expected)
  pixels = data.train.images / 255
  np.testing.assert_allclose(data.mean, pixels.mean((0, 1, 2)), rtol=1e-9)
  np.testing.assert_allclose(data.std, pixels.std((0, 1, 2)), rtol=1e-9)


def test_one_folder_is_divided_and_the_test_part_is_the_same_for_every_seed(tmp_path):
  write_split(tmp_path, count=20)
  one, other = (from_folder(tmp_path, seed=seed) for seed in (0, 1))
  assert [len(s) for s in (one.train, one.validation, one.test)] == [43, 5, 12]
  np.testing.assert_array_equal(np.bincount(one.test.labels), [4, 4, 4])
  np.testing.assert_array_equal(one.test.indices, other.test.indices)
  assert set(one.validation.indices) != set(other.validation.indices)
  parts = [set(part.indices.tolist()) for part in (one.train, one.validation, one.test)]
  assert not parts[0] & parts[1] and len(set.union(*parts)) == 60
  assert one.mean == other.mean, "the same for every seed, so that runs can share a teacher"
  counted = from_folder(tmp_path, validation=0, test=6)
  assert counted.validation is None and len(counted.test) == 6


def test_a_large_split_stays_on_disk_and_has_the_same_pixels(tmp_path):
  write_splits(tmp_path, size=(30, 20), suffix="jpg")
  held, lazy = (from_folder(tmp_path, image_size=16, memory_limit=n) for n in (2**30, 0))
  assert isinstance(lazy.train, RecordExamples) and lazy.image_shape == (16, 16, 3)
  positions = np.array([3, 17, 0])
  np.testing.assert_array_equal(lazy.train.fetch(positions), held.train.fetch(positions))
  np.testing.assert_allclose(lazy.mean, held.mean)
  (tmp_path / "train/dog/1.jpg").write_bytes(b"overwritten")
  with pytest.raises(ConfigError, match=r"record 7 .*dog/1\.jpg is no picture"):
    lazy.train.fetch(np.array([7]))


def encoded(image, kind="PNG", **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


@pytest.mark.parametrize("size", [(20, 20), (31, 20), (20, 45), (9, 14)])
def test_pictures_are_resized_as_those_of_imagenet(size):
  content = encoded(picture(1, size=size))
  np.testing.assert_array_equal(decode(content, channels=3, side=16), shrink(content, 16))


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("side", [32, 64, 224])
def test_large_jpegs_are_decoded_at_a_fraction_with_nearly_the_same_pixels(name, side):
  content = (pathlib.Path(sklearn.datasets.__file__).parent / "images" / name).read_bytes()
  difference = np.abs(decode(content, channels=3, side=side).astype(int) - shrink(content, side))
  assert difference.mean() < 0.5 and difference.max() <= 8
  assert (difference.max() > 0) == (side < 224), "427 rows are not halved for 224"


def test_narrow_pictures_are_squares_of_their_middle():
  wide = np.zeros((4, 4000, 3), np.uint8)
  wide[:, 1990:2010] = 200
  assert decode(encoded(Image.fromarray(wide)), channels=3, side=8).min() == 200


def test_grey_pictures_have_one_channel_until_one_is_coloured(tmp_path):
  write_split(tmp_path, mode="L", count=10)
  assert from_folder(tmp_path).image_shape == (8, 10, 1)
  picture(0).save(tmp_path / "cat/colour.png")
  assert from_folder(tmp_path).image_shape == (8, 10, 3)


def test_modes_become_rgb():
  colour = Image.new("RGB", (6, 4), (200, 100, 50))
  for mode in ("RGB", "RGBA", "P", "CMYK"):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    pixels = decode(encoded(colour.convert(mode), kind), channels=3)
    np.testing.assert_allclose(pixels[0, 0].astype(int), (200, 100, 50), atol=6)
  clear = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
  assert decode(encoded(clear), channels=3).min() == 255
  assert decode(encoded(clear.convert("LA")), channels=1).shape == (4, 6, 1)
  grey = decode(encoded(Image.new("L", (6, 4), 70)), channels=3)
  assert (grey == 70).all() and grey.shape == (4, 6, 3)
  keyed = encoded(Image.new("RGB", (6, 4), (9, 9, 9)), transparency=(9, 9, 9))
  assert decode(keyed, channels=3).min() == 255


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pictures_are_turned_upright(tmp_path, kind):
  image = Image.new("RGB", (16, 8))
  image.paste((255, 255, 255), (0, 0, 8, 8))  # the left half is white
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned clockwise: the left half comes to the top
  pixels = decode(encoded(image, kind, exif=exif), channels=3)
  assert pixels.shape == (16, 8, 3)
  assert pixels[:6].min() > 200 and pixels[10:].max() < 50
  shrunk = decode(encoded(image.resize((320, 160)), kind, exif=exif), channels=3, side=8)
  assert shrunk.shape == (8, 8, 3) and shrunk[:3].min() > 200 and shrunk[5:].max() < 50
  write_split(tmp_path, classes=("a", "b"), count=4, size=(8, 16), suffix=kind.lower())
  image.save(tmp_path / f"a/turned.{kind.lower()}", exif=exif)
  assert from_folder(tmp_path, validation=0).image_shape == (16, 8, 3)


def test_names_of_classes_are_equal_however_accents_are_spelled(tmp_path):
  write_split(tmp_path / "train", classes=("cat", unicodedata.normalize("NFC", "élan")))
  write_split(tmp_path / "test", classes=("cat", unicodedata.normalize("NFD", "élan")))
  data = from_folder(tmp_path)
  assert data.class_names == ("cat", "élan") and len(data.test) == 12
  write_split(tmp_path / "train", classes=(unicodedata.normalize("NFD", "élan"),))
  refused(tmp_path, "are one name, spelled differently")


@pytest.mark.parametrize("splits", [False, True])
def test_a_folder_of_unlabelled_pictures_is_no_class(tmp_path, splits):
  write_split(tmp_path / "train" if splits else tmp_path, classes=("cat", "dog"), count=10)
  write_split(tmp_path, classes=("unlabelled",))
  data = from_folder(tmp_path)
  assert data.class_names == ("cat", "dog") and len(data.train) + len(data.validation) == 16


def test_a_class_may_have_the_name_of_a_split(tmp_path):
  write_split(tmp_path, classes=("car", "plane", "train"))
  assert from_folder(tmp_path).class_names == ("car", "plane", "train")


def test_pictures_in_deeper_folders_and_behind_links_are_found(tmp_path):
  write_split(tmp_path / "data", classes=("a", "b"), count=5)
  write_split(tmp_path / "elsewhere", classes=("more",), count=5)
  (tmp_path / "data/a/deep").symlink_to(tmp_path / "elsewhere")
  assert len(from_folder(tmp_path / "data", validation=0, test=2).train) == 13


def test_paths_that_hold_no_classes_are_refused(tmp_path):
  refused(tmp_path / "nowhere", "nowhere' does not exist")
  (tmp_path / "file").write_text("x")
  refused(tmp_path / "file", "file' is no folder")
  (tmp_path / "empty").mkdir()
  refused(tmp_path / "empty", "empty has no folders of classes: expected CLASS/*.png")
  flat = tmp_path / "flat"
  flat.mkdir()
  picture(0).save(flat / "a.png")
  refused(flat, "flat has pictures, such as a.png, outside folders of classes")
  write_split(tmp_path / "one", classes=("cat",))
  refused(tmp_path / "one", "one has one class alone, 'cat': expected at least 2")
  refused(write_splits(tmp_path / "no_train", names=("val", "test")), "test, but no train folder")
  refused(
    write_splits(tmp_path / "two", names=("train", "val", "validation")),
    "two has val and validation: expected one validation folder",
  )
  refused(
    write_splits(tmp_path / "typing", names=("train", "vaild")), "folder 'vaild' beside 'train'"
  )


def test_classes_that_do_not_match_are_named(tmp_path):
  write_split(tmp_path / "train")
  write_split(tmp_path / "val", classes=("cat", "dgo"))
  refused(tmp_path, "val/dgo: class 'dgo' of validation has no folder in train, which has cat, dog")
  (tmp_path / "val/dgo").rename(tmp_path / "val/dog")
  (tmp_path / "train/owl").mkdir()
  refused(tmp_path, "train/owl: class 'owl' has no pictures (.png, .jpg")


def test_files_that_are_no_pictures_are_named(tmp_path):
  write_split(tmp_path)
  wrong = tmp_path / "dog/3.png"
  good = wrong.read_bytes()
  wrong.write_text("no picture")
  refused(tmp_path, "dog/3.png is no picture that Pillow can read")
  wrong.write_bytes(good[: len(good) // 2])
  refused(tmp_path, "dog/3.png cannot be read")
  wrong.write_bytes(b"")
  refused(tmp_path, "dog/3.png is no picture")
  wrong.write_bytes(good)
  wrong.rename(tmp_path / "dog/3.tif")
  refused(tmp_path, "dog/3.tif is no picture by its name: expected .png, .jpg")
  (tmp_path / "dog/3.tif").rename(tmp_path / "dog/3.jpg")
  assert len(from_folder(tmp_path).class_names) == 3, "the content decides the format"
  jpeg = encoded(picture(0, size=(300, 200)), "JPEG")
  (tmp_path / "cat/3.png").write_bytes(jpeg[: len(jpeg) // 2])
  refused(tmp_path, "cat/3.png cannot be read: image file is truncated", image_size=8)


def test_deep_pixels_are_refused(tmp_path):
  write_split(tmp_path)
  Image.fromarray(np.full((8, 10), 40_000, np.uint16)).save(tmp_path / "cat/deep.png")
  refused(tmp_path, "cat/deep.png has pixels of Pillow's mode 'I;16', expected 8 bits")


def test_sizes_that_differ_are_refused_without_image_size(tmp_path):
  write_split(tmp_path)
  picture(1, size=(12, 12)).save(tmp_path / "dog/other.png")
  refused(tmp_path, "dog/other.png is 12x12; image_size (data.image_size) brings all to squares")
  assert from_folder(tmp_path, image_size=9).image_shape == (9, 9, 3)
  refused(tmp_path, "image_size=-1: expected an integer >= 0", image_size=-1)


def test_links_that_lead_nowhere_or_back_are_named(tmp_path):
  write_split(tmp_path)
  link = tmp_path / "cat/link"
  link.symlink_to(tmp_path)
  refused(tmp_path, "is a link to a folder that contains it")
  link.unlink()
  link.symlink_to(link)
  refused(tmp_path, "cat/link cannot be read: Too many levels of symbolic links")
  link.unlink()
  (tmp_path / "cat/gone.png").symlink_to(tmp_path / "nowhere.png")
  refused(tmp_path, "cat/gone.png cannot be read: No such file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_without_permission_is_named(tmp_path):
  write_split(tmp_path)
  (tmp_path / "cat").chmod(0)
  try:
    refused(tmp_path, "cat cannot be read: Permission denied")
  finally:
    (tmp_path / "cat").chmod(0o700)


def test_parts_out_of_range_are_named(tmp_path):
  write_splits(tmp_path)
  refused(tmp_path, "test=0.3: expected none, as folder:", test=0.3)
  refused(tmp_path, "validation=1.5: expected a fraction", validation=1.5)
  refused(tmp_path, "seed: expected an integer >= 0", seed=-1)
  few = write_split(tmp_path / "few", count=1)
  refused(few, "validation=0.1: 0.1 of 2 examples", test=1)
  refused(few, "test=3: 3 of 3 examples", test=3)
  same = tmp_path / "same"
  for name in ("a", "b"):
    (same / name).mkdir(parents=True)
    for number in range(5):
      Image.new("L", (4, 4), 7).save(same / name / f"{number}.png")
  refused(same, "channel 0 has one value in all training images", validation=0)


def test_load_takes_the_prefix(tmp_path):
  write_split(tmp_path, count=10)
  data = load(f"folder:{tmp_path}", image_size=6, validation=0, per_class=2)
  assert (data.name, len(data.train), data.image_shape) == (f"folder:{tmp_path}", 6, (6, 6, 3))
