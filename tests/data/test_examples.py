import numpy as np
import pytest

from jaxkd.data import UNLABELLED, ArrayExamples, RecordExamples
from jaxkd.data.examples import read_examples
from jaxkd.errors import ConfigError


class Records:
  """A tfds data source of 2x2 images, where image i is filled with i."""

  def __init__(self, labels, dtype=np.uint8):
    self.labels, self.dtype, self.requests = labels, dtype, []

  def __len__(self):
    return len(self.labels)

  def __getitems__(self, keys):
    self.requests.append(list(keys))
    return [
      {"image": np.full((2, 2, 1), key, self.dtype), "label": self.labels[key]} for key in keys
    ]


def read(source, label_source=None, num_classes=3, image_shape=(2, 2, 1), memory_limit=1000):
  return read_examples(
    source,
    label_source or source,
    num_classes=num_classes,
    image_shape=image_shape,
    memory_limit=memory_limit,
  )


def test_small_splits_are_held_in_memory_and_large_ones_on_disk():
  labels = [0, 1, 2, 1, 0]
  assert isinstance(read(Records(labels), memory_limit=20), ArrayExamples)
  source, label_source = Records(labels), Records(labels)
  large = read(source, label_source, memory_limit=19)
  assert isinstance(large, RecordExamples)
  assert source.requests == [], "reading the labels of a large split decodes no image"


@pytest.mark.parametrize("memory_limit", [0, 1000])
def test_subsets_keep_indices_of_the_original_split(memory_limit):
  examples = read(Records([0, 1, 2, 1, 0]), memory_limit=memory_limit)
  subset = examples.take(np.array([4, 1, 3])).take(np.array([2, 0]))
  np.testing.assert_array_equal(subset.indices, [3, 4])
  np.testing.assert_array_equal(subset.labels, [1, 0])
  assert len(subset) == 2
  images = subset.fetch(np.array([1, 0, 1]))
  assert images.dtype == np.uint8 and images.shape == (3, 2, 2, 1)
  np.testing.assert_array_equal(images[:, 0, 0, 0], [4, 3, 4])


@pytest.mark.parametrize("memory_limit", [0, 1000])
def test_hiding_labels_does_not_change_the_original(memory_limit):
  examples = read(Records([0, 1, 2, 1, 0]), memory_limit=memory_limit)
  hidden = examples.hide_labels(np.array([1, 4]))
  np.testing.assert_array_equal(hidden.labels, [0, UNLABELLED, 2, 1, UNLABELLED])
  np.testing.assert_array_equal(hidden.take(np.array([4, 0])).labels, [UNLABELLED, 0])
  np.testing.assert_array_equal(hidden.indices, np.arange(5))
  np.testing.assert_array_equal(hidden.fetch(np.array([4]))[:, 0, 0, 0], [4])
  np.testing.assert_array_equal(examples.labels, [0, 1, 2, 1, 0])


@pytest.mark.parametrize("memory_limit", [0, 1000])
def test_error_names_a_label_out_of_range(memory_limit):
  with pytest.raises(ConfigError, match=r"label of example 2 is 3, not in 0\.\.2"):
    read(Records([0, 1, 3]), memory_limit=memory_limit)
  with pytest.raises(ConfigError, match="label of example 0 is -1"):
    read(Records([-1, 1]), memory_limit=memory_limit)


def test_images_must_be_uint8_of_the_known_shape():
  with pytest.raises(ConfigError, match=r"must be uint8, got float32 \(2, 2, 1\)"):
    read(Records([0], dtype=np.float32))
  with pytest.raises(ConfigError, match=r"image 0: shape \(2, 2, 1\), expected \(2, 2, 3\)"):
    read(Records([0]), image_shape=(2, 2, 3))


def test_array_examples_error_names_the_wrong_argument():
  images, labels = np.zeros((3, 2, 2, 1), np.uint8), np.zeros(3, np.int32)
  with pytest.raises(ConfigError, match=r"^images: expected uint8 \(N, H, W, C\), got float32 \("):
    ArrayExamples(images.astype(np.float32), labels, labels)
  wrong = np.where(np.arange(4).reshape(2, 2, 1) == 1, np.nan, images)
  with pytest.raises(ConfigError, match=r"got float64 \(3, 2, 2, 1\), of which 3 are not finite$"):
    ArrayExamples(wrong, labels, labels)
  with pytest.raises(ValueError, match=r"labels: expected int32 \(N,\), got int64"):
    ArrayExamples(images, labels.astype(np.int64), labels)
  with pytest.raises(ValueError, match="indices"):
    ArrayExamples(images, labels, labels[:2])
  with pytest.raises(ValueError, match="images: 2 of them for 3 labels"):
    ArrayExamples(images[:2], labels, labels)


class Damaged(Records):
  """Records of which record 3 is unreadable and record 4 has another size."""

  def __getitems__(self, keys):
    if 3 in keys:
      raise RuntimeError("chunk data hash\nmismatch")
    records = super().__getitems__(keys)
    for key, record in zip(keys, records, strict=True):
      if key == 4:
        record["image"] = np.zeros((3, 2, 1), np.uint8)
    return records


def test_error_names_an_unreadable_record():
  labels = np.zeros(6, np.int32)
  examples = RecordExamples(Damaged(labels), labels, np.arange(6, dtype=np.int32)[::-1].copy())
  assert len(examples.fetch(np.array([5, 4]))) == 2
  with pytest.raises(
    ConfigError, match=r"^record 3 of the split cannot be read: chunk data hash mis"
  ):
    examples.fetch(np.array([5, 4, 2]))
  with pytest.raises(
    ConfigError, match=r"^records \[0, 4\], \.\.\. do not fit together: all input"
  ):
    examples.fetch(np.array([5, 1]))
