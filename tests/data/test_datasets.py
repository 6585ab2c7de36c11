import json
import sys

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from PIL import Image

from jaxkd.data import DATASETS, DataUnavailable, load, prepare
from jaxkd.errors import ConfigError
from tests.data.original_files import cifar_records, write_cifar, write_idx


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  return tmp_path_factory.mktemp("tfds")


@pytest.fixture
def offline(monkeypatch):
  def get(*args, **kwargs):
    raise requests.ConnectionError("no network in tests")

  monkeypatch.setattr(requests, "get", get)
  monkeypatch.setattr(prepare, "DEBIAN_FOLDERS", {})


def write_fashion(folder, label):
  """Write a tiny copy of Fashion-MNIST's files, all with one label."""
  folder.mkdir(parents=True)
  for name, count in (("train", 12), ("t10k", 6)):
    write_idx(folder / f"{name}-images-idx3-ubyte.gz", np.full((count, 28, 28), 7, np.uint8))
    write_idx(folder / f"{name}-labels-idx1-ubyte.gz", np.full(count, label, np.uint8))
  return folder


def test_digits_load_into_the_given_directory(directory, capfd):
  data = load("digits", directory=directory)
  assert (directory / "digits" / "1.0.0").is_dir()
  assert (len(data.train), len(data.validation), len(data.test)) == (1293, 144, 360)
  assert (data.num_classes, data.image_shape, data.name) == (10, (8, 8, 1), "digits")
  assert data.train.labels.dtype == data.train.indices.dtype == np.int32
  out, err = capfd.readouterr()
  assert (out, err) == ("", ""), "no output without a terminal"
  assert "tensorflow" not in sys.modules


def test_validation_and_training_parts_are_disjoint(directory):
  data = load("digits", directory=directory, validation=0.2, seed=3)
  both = np.concatenate([data.train.indices, data.validation.indices])
  np.testing.assert_array_equal(np.sort(both), np.arange(1437))
  shares = np.bincount(data.validation.labels) / np.bincount(data.train.labels)
  assert (abs(shares - 0.25) < 0.02).all()


def test_test_split_and_statistics_do_not_depend_on_the_choices(directory):
  whole = load("digits", directory=directory, validation=0)
  part = load("digits", directory=directory, validation=100, per_class=5, seed=9)
  assert whole.validation is None and len(whole.train) == 1437 and len(part.validation) == 100
  everything = np.arange(360)
  np.testing.assert_array_equal(whole.test.fetch(everything), part.test.fetch(everything))
  np.testing.assert_array_equal(part.test.indices, everything)
  assert (whole.mean, whole.std) == (part.mean, part.std)
  pixels = whole.train.fetch(np.arange(1437)) / 255
  np.testing.assert_allclose((*whole.mean, *whole.std), (pixels.mean(), pixels.std()))


def test_subsets_are_balanced_nested_and_drawn_after_the_validation_part(directory):
  few, many = (load("digits", directory=directory, per_class=n, seed=1) for n in (10, 20))
  np.testing.assert_array_equal(np.bincount(few.train.labels), [10] * 10)
  assert set(few.train.indices) < set(many.train.indices)
  np.testing.assert_array_equal(few.validation.indices, many.validation.indices)
  assert not set(many.train.indices) & set(many.validation.indices)


def test_splits_over_the_memory_limit_have_equal_examples_on_disk(directory):
  held = load("digits", directory=directory, memory_limit=1437 * 64)
  read = load("digits", directory=directory, memory_limit=360 * 64, per_class=9)
  assert [type(x).__name__ for x in (held.train, read.train, read.test)] == [
    "ArrayExamples",
    "RecordExamples",
    "ArrayExamples",
  ]
  everything = load("digits", directory=directory, validation=0).train
  np.testing.assert_array_equal(
    read.train.fetch(np.array([5, 0, 80])),
    everything.fetch(read.train.indices[[5, 0, 80]]),
  )
  assert read.mean == held.mean


def test_directory_defaults_to_the_environment_variable(directory, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(directory))
  monkeypatch.setattr(prepare, "_prepare", lambda make_builder: make_builder())
  assert len(load("digits").test) == 360  # read from there, since nothing can be prepared


def test_error_for_an_unknown_name_lists_the_known_ones():
  with pytest.raises(ConfigError, match=r"unknown data set 'cifar': did you mean .*known: cifar10"):
    load("cifar")


@pytest.mark.parametrize("validation", [-0.1, -5, 1.0, 1437, True, "0.1"])
def test_error_names_an_impossible_validation_size(directory, validation):
  with pytest.raises(ConfigError, match=r"validation|split_off"):
    load("digits", directory=directory, validation=validation)


def test_too_large_per_class_names_the_class(directory):
  with pytest.raises(ConfigError, match=r"per_class=500: class \d has only 1\d\d examples"):
    load("digits", directory=directory, per_class=500)


def test_fashion_mnist_is_prepared_from_debians_files(tmp_path, offline, monkeypatch):
  debian = write_fashion(tmp_path / "debian", label=4)
  monkeypatch.setattr(prepare, "DEBIAN_FOLDERS", {"fashion_mnist": debian})
  data = load("fashion_mnist", directory=tmp_path, validation=3)
  assert set(data.train.labels) == {4} and (len(data.train), len(data.test)) == (9, 6)
  assert data.train.fetch(np.array([0])).shape == (1, 28, 28, 1)
  for file in debian.iterdir():
    file.unlink()
  assert len(load("fashion_mnist", directory=tmp_path, validation=0).train) == 12


class Stock(tfds.image_classification.FashionMNIST, skip_registration=True):
  """The stock builder with images that are encoded without TensorFlow."""

  name = "fashion_mnist"

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(12), "test": self._generate_examples(6)}

  def _generate_examples(self, count):
    for i in range(count):
      yield i, {"image": Image.fromarray(np.full((28, 28), 9, np.uint8)), "label": 8}


def test_stock_copy_has_priority_if_it_has_random_access(tmp_path, offline, monkeypatch):
  write_fashion(tmp_path / "downloads" / "manual" / "fashion_mnist", label=4)
  stock = Stock(data_dir=tmp_path)
  stock.download_and_prepare(file_format="array_record")
  data = load("fashion_mnist", directory=tmp_path, validation=0)
  assert set(data.train.labels) == {8}
  assert (data.train.fetch(np.arange(12)) == 9).all()

  # A copy without random access is ignored.
  info = tmp_path / "fashion_mnist" / "3.0.1" / "dataset_info.json"
  facts = json.loads(info.read_text())
  info.write_text(json.dumps({**facts, "fileFormat": "tfrecord"}))
  assert set(load("fashion_mnist", directory=tmp_path, validation=0).train.labels) == {4}


def test_unavailable_data_error_lists_ways_to_get_it(tmp_path, offline):
  with pytest.raises(DataUnavailable) as fashion:
    load("fashion_mnist", directory=tmp_path)
  with pytest.raises(DataUnavailable) as cifar:
    load("cifar10", directory=tmp_path)
  for message in (str(fashion.value), str(cifar.value)):
    assert "\n" not in message and str(tmp_path) in message and "cannot be reached" in message
  assert "apt-get install dataset-fashion-mnist" in str(fashion.value)
  assert f"put cifar-10-binary.tar.gz into {tmp_path}/downloads/manual/cifar10" in str(cifar.value)
  assert "apt-get" not in str(cifar.value)


def test_download_uses_tfds(tmp_path, monkeypatch):
  archive = tmp_path / "archive"
  image = np.arange(32 * 32 * 3).reshape(1, 32, 32, 3) % 251
  members = {f"data_batch_{i}.bin": cifar_records(image, [i]) for i in range(1, 6)}
  members["test_batch.bin"] = cifar_records(image, [9])
  write_cifar(archive, {f"cifar-10-batches-bin/{name}": data for name, data in members.items()})
  requests = []

  def download(self, urls):
    requests.append(urls)
    return dict.fromkeys(urls, archive)

  monkeypatch.setattr(prepare, "_obstacle", lambda url: None)
  monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
  data = load("cifar10", directory=tmp_path, validation=0)
  name = "cifar-10-binary.tar.gz"
  assert requests == [{name: f"https://www.cs.toronto.edu/~kriz/{name}"}]
  assert data.train.labels.tolist() == [1, 2, 3, 4, 5] and data.test.labels.tolist() == [9]
  np.testing.assert_array_equal(data.test.fetch(np.array([0])), image)


def test_failed_preparation_raises_one_line_with_the_cause(tmp_path, offline):
  folder = write_fashion(tmp_path / "downloads" / "manual" / "fashion_mnist", label=4)
  (folder / "train-images-idx3-ubyte.gz").write_bytes(b"<html>")
  with pytest.raises(DataUnavailable, match=r"could not be prepared in .* is not an IDX file"):
    load("fashion_mnist", directory=tmp_path)
  assert not (tmp_path / "idx_images" / "fashion_mnist" / "1.0.0").exists()


class Fake:
  """A data source of black images with cycling labels and the shapes of a builder."""

  def __init__(self, features):
    self.features = features

  def __len__(self):
    return 20

  def __getitems__(self, keys):
    image = np.zeros(self.features["image"].shape, np.uint8)
    classes = self.features["label"].num_classes
    return [{"image": image, "label": -key % classes} for key in keys]


def test_error_names_a_damaged_copy(tmp_path):
  load("digits", directory=tmp_path)
  (file,) = tmp_path.glob("digits/1.0.0/digits-train*")
  file.write_bytes(file.read_bytes()[:1000])
  with pytest.raises(
    DataUnavailable, match=r"digits/1\.0\.0 cannot be read .*; remove that folder"
  ):
    load("digits", directory=tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
def test_truncated_records_are_named_in_one_line(tmp_path, share, record_property):
  record_property("fault", f"records cut to {share:.1%} of their file")
  record_property("tries", 2)
  load("digits", directory=tmp_path)
  (file,) = tmp_path.glob("digits/1.0.0/digits-train*")
  file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
  for memory_limit in (1000, 2**31):
    with pytest.raises(DataUnavailable, match=r"cannot be read .*; remove that folder") as error:
      load("digits", directory=tmp_path, memory_limit=memory_limit)
    assert "\n" not in str(error.value)
  record_property("outcome", "one line naming the data set and its folder, in memory or not")


def test_error_names_a_record_damaged_after_loading(tmp_path):
  load("digits", directory=tmp_path)
  data = load("digits", directory=tmp_path, memory_limit=1000)
  (file,) = tmp_path.glob("digits/1.0.0/digits-train*")
  content = bytearray(file.read_bytes())
  content[1000:100_000] = bytes(99_000)
  file.write_bytes(content)
  with pytest.raises(
    ConfigError, match=r"^record \d+ of the split cannot be read: .*hash mismatch"
  ):
    data.train.fetch(np.arange(300))


@pytest.mark.parametrize("content", ["", '{"name": "dig', None])
def test_error_for_a_damaged_description_is_one_line(tmp_path, content):
  load("digits", directory=tmp_path)
  file = tmp_path / "digits/1.0.0/dataset_info.json"
  file.unlink()
  if content is not None:
    file.write_text(content)
  with pytest.raises(DataUnavailable, match=r"^digits: the copy in .* cannot be read") as error:
    load("digits", directory=tmp_path)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"digits", "imagenet"}))
def test_stock_data_sets_have_the_shape_and_classes_of_tfds(name, monkeypatch):
  monkeypatch.setattr(prepare, "is_prepared", lambda builder: True)
  monkeypatch.setattr(prepare, "has_random_access", lambda builder: True)

  def as_data_source(builder, split, decoders=None):
    return Fake(builder.info.features)

  with tfds.testing.mock_data(as_data_source_fn=as_data_source):
    data = load(name, validation=0.25)
  features = tfds.builder(name).info.features
  assert data.image_shape == features["image"].shape == data.train.fetch(np.arange(3)).shape[1:]
  assert data.num_classes == features["label"].num_classes
  assert data.train.labels.max() < data.num_classes
  assert len(data.mean) == len(data.std) == data.image_shape[-1]
  assert (len(data.train), len(data.validation), len(data.test)) == (15, 5, 20)
