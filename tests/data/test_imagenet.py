import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxkd.data import DataUnavailable, fake_dataset, load
from jaxkd.data.imagenet import shrink
from jaxkd.errors import ConfigError

SIZES = [(300, 280), (280, 400), (256, 256), (90, 61)]


def photograph(number, size, mode="RGB"):
  """Return a JPEG of a smooth picture whose third channel encodes its number."""
  width, height = size
  rows, columns = np.mgrid[:height, :width]
  planes = [255 * rows / height, 255 * columns / width, np.full((height, width), 40.0 * number)]
  image = Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8)).convert(mode)
  file = io.BytesIO()
  image.save(file, "JPEG", quality=95)
  file.seek(0)
  return file


class Stock(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A few records in the format of the stock builder of ImageNet."""

  name = "imagenet2012"
  VERSION = tfds.core.Version("5.1.0")
  splits = ("train", "validation")

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(encoding_format="jpeg"),
          "label": tfds.features.ClassLabel(num_classes=1000),
          "file_name": tfds.features.Text(),
        }
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples() for split in self.splits}

  def _generate_examples(self):
    for number, size in enumerate(SIZES):
      record = {"image": photograph(number, size), "label": 7 * number, "file_name": f"{number}"}
      yield number, record


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  Stock(data_dir=folder).download_and_prepare(file_format="array_record")
  return folder


def test_imagenet_reads_jpegs_of_any_size_as_squares_of_one_size(directory):
  data = load("imagenet", directory=directory, validation=0, memory_limit=0)
  assert (data.num_classes, data.image_shape) == (1000, (256, 256, 3))
  assert data.test.labels.tolist() == data.train.labels.tolist() == [0, 7, 14, 21]
  images = data.train.fetch(np.array([3, 0]))
  assert images.shape == (2, 256, 256, 3) and images.dtype == np.uint8
  # The third channel encodes the picture's number.
  np.testing.assert_allclose(images[..., 2].mean((1, 2)), [120, 0], atol=3)
  held = load("imagenet", directory=directory, validation=1, memory_limit=2**30)
  np.testing.assert_array_equal(held.test.fetch(np.array([3, 0])), images)
  assert type(held.train).__name__ == "ArrayExamples" and len(held.validation) == 1


def test_imagenet_labels_are_cached_beside_the_records(directory):
  load("imagenet", directory=directory, validation=0, memory_limit=0)
  (file,) = directory.glob("imagenet2012/*/jaxkd_labels_train.npy")
  np.save(file, np.full(4, 5, np.int32))
  assert set(load("imagenet", directory=directory, validation=0, memory_limit=0).train.labels) == {
    5
  }
  # A damaged file is read again from the records.
  for content in (b"\x93NUMPY", b""):
    file.write_bytes(content)
    again = load("imagenet", directory=directory, validation=0, memory_limit=0)
    assert again.train.labels.tolist() == [0, 7, 14, 21]


def test_shrink_keeps_the_middle_and_the_aspect_ratio():
  # Values rise from 0 to 255 over rows and over columns; an image twice as wide as high loses a
  # quarter on each side.
  image = shrink(photograph(1, (600, 300)).read(), 64).astype(int)
  np.testing.assert_allclose(image[[0, 63], 32, 0], [2, 253], atol=4)
  np.testing.assert_allclose(image[32, [0, 63], 1], [64, 191], atol=4)
  grey = shrink(photograph(1, (70, 90), mode="L").read(), 64)
  assert grey.shape == (64, 64, 3) and (grey[..., 0] == grey[..., 2]).all()


def test_error_says_how_to_get_imagenet(tmp_path):
  with pytest.raises(DataUnavailable) as caught:
    load("imagenet", directory=tmp_path)
  message = str(caught.value)
  assert "\n" not in message and str(tmp_path / "downloads" / "manual") in message
  for part in ("image-net.org", "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
    assert part in message
  assert f"tfds build imagenet2012 --data_dir={tmp_path} --file_format=array_record" in message


def test_error_names_an_imagenet_copy_without_validation_split(tmp_path):
  class Half(Stock, skip_registration=True):
    name = "imagenet2012"
    splits = ("train",)

  Half(data_dir=tmp_path).download_and_prepare(file_format="array_record")
  with pytest.raises(DataUnavailable, match=r"has no split validation, and only registered"):
    load("imagenet", directory=tmp_path)


def test_fake_dataset_has_the_shapes_and_sizes_of_the_real_one():
  data = fake_dataset("cifar100", validation=0.1, per_class=3, seed=1)
  assert (len(data.train), len(data.validation), len(data.test)) == (300, 5000, 10_000)
  assert np.bincount(data.train.labels).tolist() == [3] * 100
  images = data.test.fetch(np.array([4, 4, 9]))
  assert images.shape == (3, 32, 32, 3) and images.dtype == np.uint8
  assert (images[0] == images[1]).all() and (images[0] != images[2]).any()


@pytest.mark.parametrize(
  "options", [{"test": 0.5}, {"image_size": 5000}, {"validation": 1.5}, {"seed": -1}]
)
def test_fake_dataset_refuses_what_the_real_one_refuses(options):
  messages = []
  for function in (load, fake_dataset):
    with pytest.raises(ConfigError) as caught:
      function("digits", **options)
    messages.append(str(caught.value))
  assert messages[0] == messages[1] and messages[0].startswith(next(iter(options)))
