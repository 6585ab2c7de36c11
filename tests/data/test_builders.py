import gzip
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxkd.data import builders, prepare
from jaxkd.data.builders import Digits
from tests.data.original_files import cifar_records, write_cifar, write_idx


def read(builder, split):
  source = builder.as_data_source(split)
  records = source.__getitems__(list(range(len(source))))
  return np.stack([r["image"] for r in records]), np.array([r["label"] for r in records])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
  return prepare.prepared_digits(str(tmp_path_factory.mktemp("tfds")))


def test_digits_are_sklearns_with_a_stratified_split(digits):
  images, labels = zip(read(digits, "train"), read(digits, "test"), strict=True)
  assert [len(part) for part in labels] == [1437, 360]
  assert images[0].shape == (1437, 8, 8, 1) and images[0].dtype == np.uint8

  def rows(images, labels):
    return sorted(map(tuple, np.column_stack([labels, images.reshape(len(labels), -1)])))

  original = load_digits()
  pixels = np.round(np.concatenate(images) * (16 / 255)).astype(int)
  assert rows(pixels, np.concatenate(labels)) == rows(original.images.astype(int), original.target)
  shares = np.bincount(labels[1]) / np.bincount(np.concatenate(labels))
  assert (abs(shares - 360 / 1797) < 1 / 174).all(), "every class in proportion"


def test_split_of_the_digits_is_fixed(digits):
  # If these values change, results on the digits are not comparable with older ones.
  images, labels = read(digits, "test")
  assert labels[:8].tolist() == [4, 7, 9, 7, 3, 0, 1, 2]
  assert images.reshape(360, -1).astype(int)[:5].sum(1).tolist() == [4143, 5258, 5323, 4496, 4910]


def test_digits_are_shuffled(digits):
  labels = read(digits, "train")[1]
  # The labels of the source cycle through 0..9.
  assert (np.diff(labels) == 1).mean() < 0.2


def test_copy_of_a_faster_concurrent_process_is_used(tmp_path, monkeypatch):
  original, entered = Digits._split_generators, []

  def overtaken(self, dl_manager):
    if not entered:
      entered.append(True)
      prepare.prepared_digits(str(tmp_path))
    return original(self, dl_manager)

  monkeypatch.setattr(Digits, "_split_generators", overtaken)
  builder = prepare.prepared_digits(str(tmp_path))
  assert entered and len(builder.as_data_source("test")) == 360
  assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


PREPARE = """
import os, sys
from jaxkd.data import prepare
from jaxkd.data.builders import Digits
def die(self, images, labels):
  yield 0, {"image": images[0], "label": int(labels[0])}
  os._exit(9)
if sys.argv[2] == "die":
  Digits._generate_examples = die
print(len(prepare.prepared_digits(sys.argv[1]).as_data_source("train")))
"""


@pytest.mark.long
def test_concurrent_preparations_succeed_after_a_killed_one(tmp_path):
  def start(fate):
    return subprocess.Popen(
      [sys.executable, "-c", PREPARE, str(tmp_path), fate],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  killed = start("die")
  killed.communicate(timeout=600)
  assert killed.returncode == 9 and list((tmp_path / "digits").glob("incomplete*"))
  for process in [start("live"), start("live")]:
    out, err = process.communicate(timeout=600)
    assert (process.returncode, out) == (0, "1437\n"), err


def test_builders_keep_the_names_and_versions_of_prepared_data_sets(tmp_path):
  """TFDS finds a prepared data set by its builder's name and version, which name its folder."""
  cifar = builders.CifarBinary(config="cifar100", data_dir=tmp_path)
  fashion = builders.IdxImages(config="fashion_mnist", data_dir=tmp_path)
  found = [builder.info.full_name for builder in (Digits(data_dir=tmp_path), cifar, fashion)]
  assert found == ["digits/1.0.0", "cifar_binary/cifar100/1.0.0", "idx_images/fashion_mnist/1.0.0"]


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read_with_and_without_gzip(tmp_path, packed):
  array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
  write_idx(tmp_path / "file", array, packed)
  np.testing.assert_array_equal(builders.read_idx(tmp_path / "file"), array)


def test_errors_name_damaged_idx_files(tmp_path):
  file = tmp_path / "broken.gz"
  whole = bytes([0, 0, 8, 1, 0, 0, 0, 4, 1, 2, 3, 4])
  packed = gzip.compress(whole)
  for data in (whole[:-1], whole + b"x", whole[:6], packed[:-9], packed[:12] + b"\xff" * 9):
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"broken\.gz is damaged"):
      builders.read_idx(file)
  for data in (b"", b"<html>", bytes([0, 0, 13, 1, 0, 0, 0, 0])):
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"broken\.gz is not an IDX file"):
      builders.read_idx(file)


def test_idx_builder_reads_any_folder_of_idx_files(tmp_path):
  rng = np.random.default_rng(0)
  expected = {}
  for split, name, count in (("train", "train", 30), ("test", "t10k", 20)):
    images = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
    labels = rng.integers(0, 10, count).astype(np.uint8)
    expected[split] = images, labels
    write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / f"{name}-labels-idx1-ubyte", labels, packed=False)
  builder = builders.IdxImages(config="mnist", folder=tmp_path, data_dir=tmp_path / "tfds")
  builder.download_and_prepare(file_format="array_record")
  for split, (images, labels) in expected.items():
    stored_images, stored_labels = read(builder, split)
    np.testing.assert_array_equal(stored_images, images[..., None])
    np.testing.assert_array_equal(stored_labels, labels)


def test_cifar100_builder_reads_fine_labels_and_channels_last(tmp_path):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (12, 32, 32, 3))
  fine, coarse = rng.integers(0, 100, 12), rng.integers(0, 20, 12)
  data = cifar_records(images, coarse, fine)
  members = {"cifar-100-binary/train.bin": data, "cifar-100-binary/test.bin": data[: 3074 * 5]}
  write_cifar(tmp_path / "cifar-100-binary.tar.gz", members)
  builder = builders.CifarBinary(config="cifar100", folder=tmp_path, data_dir=tmp_path / "tfds")
  builder.download_and_prepare(file_format="array_record")
  for split, count in (("train", 12), ("test", 5)):
    stored_images, stored_labels = read(builder, split)
    np.testing.assert_array_equal(stored_images, images[:count])
    np.testing.assert_array_equal(stored_labels, fine[:count])


def test_errors_name_damaged_cifar_archives(tmp_path):
  file = tmp_path / "cifar.tar.gz"
  write_cifar(file, {"test.bin": b"x" * 100})
  for members, message in ((["train.bin"], "train.bin"), (["test.bin"], "records of 3073 bytes")):
    with pytest.raises(ValueError, match=rf"cifar\.tar\.gz is damaged: .*{message}"):
      builders.read_cifar(file, members, 1)
  file.write_bytes(b"no archive")
  with pytest.raises(ValueError, match=r"cifar\.tar\.gz is damaged"):
    builders.read_cifar(file, ["test.bin"], 1)
