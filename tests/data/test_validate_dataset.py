"""Data sets that contradict their own description: shapes, types, numbers, labels, classes."""

import dataclasses

import numpy as np
import pytest

from jaxkd.data import (
  UNLABELLED,
  ArrayExamples,
  Dataset,
  RecordExamples,
  unseen_classes,
  validate_dataset,
)
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config


def examples(labels):
  labels = np.int32(labels)
  images = np.zeros((len(labels), 2, 2, 1), np.uint8)
  return ArrayExamples(images, labels, np.arange(len(labels), dtype=np.int32))


def dataset(**changes):
  some = examples([0, 1, 2, 1])
  return dataclasses.replace(
    Dataset("own", some, some, some, 3, (2, 2, 1), (0.5,), (0.2,)), **changes
  )


def test_valid_data_set_is_returned_unchanged():
  data = dataset(train=examples([0, 1, 2, UNLABELLED]), validation=None)
  assert validate_dataset(data) is data


class Floats:
  """A source of images of another type, which is found only by reading one."""

  def __getitems__(self, keys):
    return [{"image": np.full((2, 2, 1), np.nan, np.float32)} for _ in keys]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"train": examples([0, 1, 3, 2])}, "train: label of example 2 is 3, not in 0..2"),
    ({"train": examples([0, -2, 1, 2])}, "train: label of example 1 is -2, not in 0..2"),
    ({"test": examples([0, UNLABELLED])}, "test: label of example 1 is -1, not in 0..2"),
    ({"validation": examples([9])}, "validation: label of example 0 is 9, not in 0..2"),
    ({"train": examples([UNLABELLED])}, "train: no example has a label"),
    ({"test": examples([])}, "test: there are no examples"),
    (
      {"image_shape": (2, 3, 1)},
      "train: images are uint8 (2, 2, 1), expected uint8 (2, 3, 1)",
    ),
    ({"mean": (float("nan"),)}, "mean=(nan,): expected 1 finite numbers, one per channel"),
    ({"std": (0.0,)}, "std=(0.0,): expected 1 finite numbers > 0, one per channel"),
    ({"std": (0.1, 0.1)}, "std=(0.1, 0.1): expected 1 finite numbers > 0, one per channel"),
  ],
)
def test_errors_name_the_field_that_does_not_fit(changes, message):
  with pytest.raises(ConfigError) as error:
    validate_dataset(dataset(**changes))
  assert str(error.value) == f"data set 'own': {message}"


def test_error_names_the_dtype_of_images_on_disk():
  some = examples([0, 1, 2])
  on_disk = RecordExamples(Floats(), some.labels, some.indices)
  with pytest.raises(ConfigError, match=r"images must be uint8, got float32 .*4 are not finite$"):
    validate_dataset(dataset(train=on_disk))


def test_experiment_validates_its_data_set():
  settings = config.base_config("kd")
  with pytest.raises(ConfigError, match=r"^data set 'own': train: label of example 1 is 3, not in"):
    build.dataset(settings, lambda name, **options: dataset(train=examples([0, 3, 0])))


@pytest.mark.parametrize(
  ("labels", "note"),
  [
    ([0, 1, 2], ""),
    ([0, 0, 2], "class 1 of 3 has no training example"),
    ([UNLABELLED, 1], "class 0 and 1 more of 3 has no training example"),
  ],
)
def test_class_without_training_examples_is_accepted_and_named(labels, note):
  data = validate_dataset(dataset(train=examples(labels)))
  assert unseen_classes(data) == note
