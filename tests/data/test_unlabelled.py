"""Unlabelled pictures from a folder of their own."""

import numpy as np
import pytest

from jaxkd.data import (
  UNLABELLED,
  ArrayExamples,
  Dataset,
  RecordExamples,
  TreeExamples,
  from_arrays,
  from_folder,
  join_unlabelled,
)
from jaxkd.data.unlabelled import labelled_only, with_unlabelled_of
from jaxkd.errors import ConfigError
from jaxkd.experiment.config import base_config
from jaxkd.experiment.preparation import phase_examples
from tests.data.picture_folders import picture, write_split


@pytest.fixture
def pictures(tmp_path):
  write_split(tmp_path / "extra", classes=("x", "y"), count=4, size=(10, 8))
  picture(1, seed=9).save(tmp_path / "extra/loose.png")
  return tmp_path / "extra"


@pytest.fixture
def labelled(tmp_path):
  return from_folder(write_split(tmp_path / "own", count=10))


@pytest.mark.parametrize("memory_limit", [0, 6_000, 2**30])
def test_pictures_follow_the_training_examples(labelled, pictures, memory_limit):
  data = join_unlabelled(labelled, pictures, memory_limit=memory_limit)
  kind = ArrayExamples if memory_limit == 2**30 else RecordExamples
  count = len(labelled.train)
  assert isinstance(data.train, kind) and len(data.train) == count + 9
  np.testing.assert_array_equal(data.train.labels[count:], UNLABELLED)
  np.testing.assert_array_equal(data.train.labels[:count], labelled.train.labels)
  assert len(set(data.train.indices) | set(data.validation.indices)) == count + 9 + 2
  positions = np.array([count, 2, count + 8, 0])
  images = data.train.fetch(positions)
  np.testing.assert_array_equal(images[0], np.asarray(picture(1, seed=9)))
  np.testing.assert_array_equal(images[[1, 3]], labelled.train.fetch(np.array([2, 0])))
  np.testing.assert_array_equal(images[2], np.asarray(picture(1, seed=3)))
  assert data.validation is labelled.validation and data.mean == labelled.mean


def test_students_alone_and_teachers_see_no_unlabelled_picture(labelled, pictures):
  data = join_unlabelled(labelled, pictures)
  settings = base_config("kd")
  for role, alone, count in (("teacher", False, 0), ("student", True, 0), ("student", False, 9)):
    found = phase_examples(settings, role, data, labelled=alone)
    assert len(found) == len(labelled.train) + count
    assert (found.labels == UNLABELLED).sum() == count
  settings.data.per_class, settings.data.unlabelled = 2, 5
  found = phase_examples(settings, "student", data)
  assert (found.labels >= 0).sum() == 6 and (found.labels == UNLABELLED).sum() == 5 + 9
  assert len(set(found.indices.tolist())) == 20
  true = dict(zip(data.train.indices.tolist(), data.train.labels.tolist(), strict=True))
  for index, label in zip(found.indices.tolist(), found.labels.tolist(), strict=True):
    assert label in (UNLABELLED, true[index])
  settings.data.unlabelled = 50
  with pytest.raises(ConfigError, match=r"data\.unlabelled=50: only 16 examples are left"):
    phase_examples(settings, "student", data)


def test_examples_that_all_have_labels_are_unchanged(labelled):
  assert labelled_only(labelled.train) is labelled.train
  assert with_unlabelled_of(labelled.train, labelled.train) is labelled.train


def test_pictures_that_do_not_fit_are_named(labelled, pictures, tmp_path):
  def refuse(words, data=labelled, folder=pictures, **options):
    with pytest.raises(ConfigError) as caught:
      join_unlabelled(data, folder, **options)
    assert words in str(caught.value), str(caught.value)

  refuse("'nowhere' does not exist", folder="nowhere")
  (tmp_path / "empty").mkdir()
  refuse("empty has no pictures (.png, .jpg", folder=tmp_path / "empty")
  write_split(tmp_path / "other", size=(9, 9))
  refuse(f"are 9x9, the images of {labelled.name} 10x8", folder=tmp_path / "other")
  rng = np.random.default_rng(0)
  many = from_arrays(rng.integers(0, 256, (20, 8, 10, 5), dtype=np.uint8), np.arange(20) % 2)
  refuse("images of arrays have 5 channels, pictures 1 or 3", data=many)
  (pictures / "x/0.png").write_text("text")
  refuse("x/0.png is no picture")


@pytest.mark.parametrize(
  ("labels", "mask", "words"),
  [
    (np.zeros((4, 8, 10), int), None, r"have labels \(8, 10\) each: expected one class number"),
    (np.arange(4) % 2, np.arange(4) < 3, "have a mask: expected one class number"),
  ],
)
def test_examples_of_several_labels_or_with_a_mask_are_refused(pictures, labels, mask, words):
  images = np.zeros((4, 8, 10, 3), np.uint8)
  some = TreeExamples(images, labels, mask=mask)
  data = Dataset("own", some, None, some, 2, (8, 10, 3), (0.5,) * 3, (0.2,) * 3)
  with pytest.raises(ConfigError, match=words):
    join_unlabelled(data, pictures)


def test_colour_becomes_that_of_the_data_set(pictures, tmp_path):
  grey = from_folder(write_split(tmp_path / "grey", mode="L", count=10, size=(9, 9)), image_size=6)
  data = join_unlabelled(grey, pictures, image_size=6)
  assert data.train.fetch(np.array([len(data.train) - 1])).shape == (1, 6, 6, 1)
