"""Data sets from random-access sources, TFDS and Hugging Face's datasets."""

import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxkd.data import DataUnavailable, RecordExamples, from_source, from_tfds, load
from jaxkd.errors import ConfigError
from tests.data.picture_folders import picture
from tests.data.test_folders import encoded

PAIRS = [(np.asarray(picture(n % 3, seed=n)), n % 3) for n in range(30)]


class Source:
  """A source of mappings, which counts what is read."""

  def __init__(self, items):
    self.items, self.reads = items, 0

  def __len__(self):
    return len(self.items)

  def __getitem__(self, key):
    self.reads += 1
    image, label = self.items[key]
    return {"image": image, "label": label, "file_name": "x"}


def test_pairs_mappings_pictures_and_bytes_have_the_same_images():
  forms = [
    PAIRS,
    Source(PAIRS),
    [(picture(n % 3, seed=n), np.int64(n % 3)) for n in range(30)],
    [{"img": encoded(picture(n % 3, seed=n)), "label": n % 3} for n in range(30)],
    [(image / 255, np.array([label], np.uint8)) for image, label in PAIRS],
  ]
  first, *others = [from_source(form, validation=0) for form in forms]
  assert first.image_shape == (8, 10, 3) and len(first.train) == 24
  for other in others:
    np.testing.assert_array_equal(other.train.images, first.train.images)
    np.testing.assert_array_equal(other.train.labels, first.train.labels)


def test_a_large_source_is_read_on_access():
  source = Source(PAIRS)
  data = from_source(source, test=PAIRS[:6], validation=3, memory_limit=0)
  assert isinstance(data.train, RecordExamples) and len(data.test) == 6
  before = source.reads
  np.testing.assert_array_equal(data.train.fetch(np.array([4]))[0], PAIRS[data.train.indices[4]][0])
  assert source.reads == before + 1


def test_items_that_are_no_pairs_are_named():
  def refuse(words, train, **options):
    with pytest.raises(ConfigError) as caught:
      from_source(train, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value), str(caught.value)

  def with_item(item, place=4):
    return [*PAIRS[:place], item, *PAIRS[place + 1 :]]

  image = PAIRS[0][0]
  refuse("train: there are no examples", [])
  refuse("train: expected a source with __len__ and __getitem__", iter(PAIRS))
  refuse("such as a list of (image, label), got dict", {"images": 3})
  refuse(
    "train row 4: expected (image, label) or a mapping with both, got ndarray", with_item(image)
  )
  refuse("train row 4 has a, b: expected an image and a label", with_item({"a": 1, "b": 2}))
  refuse("train row 4: label: expected integers, got float64", with_item((image, 1.0)))
  refuse("train row 4: label: expected one class number", with_item((image, [1, 2])))
  refuse("train row 4: expected uint8 or floats in 0..1", with_item((image.astype(int), 1)))
  refuse("train row 4: image 0 has values that are not finite", with_item((image * np.nan, 1)))
  refuse("train labels: row 4 is -1", with_item((image, -1)))
  refuse("train row 4 one of (3, 10); image_size", with_item((image[:3], 1)))
  refuse("train row 4 has 1 channels, others have 3", with_item((image[..., :1], 1)))
  refuse("train row 4 is no picture", with_item((b"text", 1)))
  refuse("images.transpose(0, 2, 3, 1)", [(i.transpose(2, 0, 1), n) for i, n in PAIRS])
  refuse("test labels: row 0 is 7, expected 0..2", PAIRS, test=[(image, 7)])
  refuse("test: images are (3, 10), those of train (8, 10)", PAIRS, test=[(image[:3], 1)])
  refuse("train row 0 cannot be read: ZeroDivisionError", Failing())


@pytest.mark.parametrize("memory_limit", [0, 2**30])
@pytest.mark.parametrize("as_picture", [False, True])
def test_an_item_of_another_size_when_read_again_is_named(memory_limit, as_picture):
  class Cropped(Source):
    def __getitem__(self, key):
      item = super().__getitem__(key)
      # One row would be repeated to fill the array of all images.
      image = item["image"] if self.reads <= len(self) else item["image"][:1]
      return {**item, "image": encoded(Image.fromarray(image)) if as_picture else image}

  with pytest.raises(
    ConfigError, match=r"train row \d+ has an image of \(1, 10\), and had .*\(8, 10\)"
  ):
    from_source(Cropped(PAIRS), memory_limit=memory_limit)


class Failing:
  def __len__(self):
    return 3

  def __getitem__(self, key):
    return 1 // 0


class SvhnCropped(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A few records in the format of the stock builder."""

  name = "svhn_cropped"
  VERSION = tfds.core.Version("3.1.0")
  pictures = True
  label = tfds.features.ClassLabel(num_classes=10)

  def _info(self):
    image = tfds.features.Image(shape=(None, None, 3) if self.pictures else (8, 10, 3))
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict({"image": image, "label": self.label}),
      supervised_keys=("image", "label"),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(12), "test": self._generate_examples(6)}

  def _generate_examples(self, count):
    import io

    for number in range(count):
      content = io.BytesIO(encoded(picture(number % 3, seed=number)))
      yield number, {"image": content, "label": number % 3}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  SvhnCropped(data_dir=folder).download_and_prepare(file_format="array_record")
  return folder


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_any_name_of_tfds(directory, memory_limit):
  data = load("tfds:svhn_cropped", directory=directory, validation=2, memory_limit=memory_limit)
  assert (data.name, data.num_classes, data.class_names) == ("tfds:svhn_cropped", 10, ())
  assert [len(part) for part in (data.train, data.validation, data.test)] == [10, 2, 6]
  expected = [np.asarray(picture(n % 3, seed=n)) for n in range(6)]
  np.testing.assert_array_equal(data.test.fetch(np.arange(6)), expected)
  assert load("tfds:svhn_cropped", directory=directory, image_size=5).image_shape == (5, 5, 3)
  assert "tensorflow" not in sys.modules


def test_a_folder_and_a_builder_of_tfds(directory, tmp_path):
  (folder,) = directory.glob("svhn_cropped/3.*")
  assert len(load(f"tfds:{folder}").test) == 6

  class Own(SvhnCropped, skip_registration=True):
    name = "own"
    pictures = False
    label = tfds.features.ClassLabel(names=["a", "b", "c"])

  builder = Own(data_dir=tmp_path)
  with pytest.raises(DataUnavailable, match=r"own.* is not prepared in .*array_record"):
    from_tfds(builder)
  builder.download_and_prepare(file_format="array_record")
  data = from_tfds(builder)
  assert data.class_names == ("a", "b", "c") and data.name == "tfds:own/3.1.0"


def test_names_that_tfds_does_not_have_are_refused(tmp_path):
  with pytest.raises(ConfigError, match=r"tfds:svhn_croped: .*tfds\.list_builders"):
    load("tfds:svhn_croped", directory=tmp_path)
  with pytest.raises(DataUnavailable, match=r"tfds build svhn_cropped --data_dir=.*array_record"):
    load("tfds:svhn_cropped", directory=tmp_path)
  with pytest.raises(ConfigError, match=r"no prepared data set \(NAME/CONFIG/VERSION\)"):
    load(f"tfds:{tmp_path}")


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("fodler:/x", "unknown prefix of a data set 'fodler': did you mean 'folder'"),
    ("folder:", "data set 'folder:': expected a folder of pictures"),
    ("folder:/no/where", "folder '/no/where' does not exist"),
    ("npz:/no/where", "/no/where: there is no such file"),
    ("hf:/no/where", "hf:/no/where: there is no such folder"),
    ("digit", "unknown data set 'digit': did you mean 'digits'"),
    ("/tmp", "a folder of pictures is folder:/tmp"),
  ],
)
def test_wrong_names_are_refused(name, words):
  with pytest.raises(ConfigError) as caught:
    load(name)
  assert words in str(caught.value) and "\n" not in str(caught.value)


def test_named_data_sets_may_be_resized_and_keep_their_test_split(tmp_path):
  data, half = (load("digits", directory=tmp_path, image_size=size) for size in (0, 4))
  assert half.image_shape == (4, 4, 1) and len(half.test) == 360
  np.testing.assert_array_equal(half.train.labels, data.train.labels)
  means = [part.images.mean((1, 2, 3)) for part in (data.train, half.train)]
  np.testing.assert_allclose(means[0], means[1], atol=6)
  with pytest.raises(ConfigError, match=r"test=0\.5: expected none, as digits has a test split"):
    load("digits", directory=tmp_path, test=0.5)
