"""Data sets of Hugging Face's `datasets`."""

import sys
import types

import numpy as np
import pytest

from jaxkd.data import from_hugging_face, load
from jaxkd.errors import ConfigError, MissingPackage
from tests.data.picture_folders import picture


def test_the_extra_is_named_where_datasets_is_missing(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(MissingPackage, match=r"needs datasets.*jaxkd-distillation\[hf\]"):
    load(f"hf:{tmp_path}")


class ClassLabel(types.SimpleNamespace):
  """Stands in for the feature of `datasets`."""


class Sequence(types.SimpleNamespace):
  """A column of arrays."""


class Table:
  """Stands in for `datasets.Dataset`, with a column of arrays."""

  def __init__(self, columns, features):
    self.columns, self.features = columns, features

  def __len__(self):
    return len(self.columns["label"])

  def __getitem__(self, key):
    return {name: column[key] for name, column in self.columns.items()}

  def select_columns(self, names):
    return Table({n: self.columns[n] for n in names}, {n: self.features[n] for n in names})

  def with_format(self, kind):
    assert kind == "numpy"
    return self


def table(count=30):
  images = [np.asarray(picture(n % 3, seed=n)) for n in range(count)]
  columns = {"image": images, "label": [n % 3 for n in range(count)], "id": list(range(count))}
  label = ClassLabel(names=["cat", "dog", "owl"])
  return Table(columns, {"image": Sequence(), "label": label, "id": Sequence()})


def test_an_object_with_its_class_names_needs_no_package(monkeypatch):
  monkeypatch.setitem(sys.modules, "datasets", None)
  data = from_hugging_face({"train": table(), "dev": table(6), "test": table(9)})
  assert data.class_names == ("cat", "dog", "owl") and data.image_shape == (8, 10, 3)
  assert [len(part) for part in (data.train, data.validation, data.test)] == [30, 6, 9]
  assert len(from_hugging_face(table()).test) == 6


def test_columns_and_splits_that_are_missing_are_named():
  with pytest.raises(ConfigError, match="hf has no split train, only test"):
    from_hugging_face({"test": table()})
  with pytest.raises(ConfigError, match="hf: train has image, label, id, but no 'x'"):
    from_hugging_face(table(), columns=("x", "label"))
  swapped = table(9)
  swapped.features["label"] = ClassLabel(names=["dog", "cat", "owl"])
  with pytest.raises(ConfigError, match=r"hf: classes of test are \['dog', .* of train \['cat', "):
    from_hugging_face({"train": table(), "test": swapped})
  other = Table({"text": ["a"], "label": [0]}, {"text": Sequence(), "label": ClassLabel()})
  with pytest.raises(ConfigError, match="hf has columns text, label: expected one Image"):
    from_hugging_face(other)


@pytest.fixture(scope="module")
def datasets():
  return pytest.importorskip("datasets")


def saved(datasets, folder, count=30):
  features = datasets.Features(
    {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "owl"])}
  )
  columns = {
    "image": [picture(n % 3, seed=n) for n in range(count)],
    "label": [n % 3 for n in range(count)],
  }
  data = datasets.Dataset.from_dict(columns, features=features)
  datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(folder))
  return data


def test_a_folder_that_was_saved_to_disk(datasets, tmp_path):
  saved(datasets, tmp_path / "data")
  data = load(f"hf:{tmp_path}/data", validation=0)
  assert data.class_names == ("cat", "dog", "owl") and data.name == f"hf:{tmp_path}/data"
  expected = [np.asarray(picture(n % 3, seed=n)) for n in range(30)]
  np.testing.assert_array_equal(data.train.fetch(np.arange(30)), expected)
  lazy = load(f"hf:{tmp_path}/data", validation=0, image_size=6, memory_limit=0)
  assert lazy.train.fetch(np.array([3])).shape == (1, 6, 6, 3)
  with pytest.raises(ConfigError, match="expected a folder that save_to_disk wrote"):
    load(f"hf:{tmp_path}")


def test_an_object_of_the_library(datasets, tmp_path):
  data = from_hugging_face(saved(datasets, tmp_path / "data"))
  assert len(data.train) + len(data.validation) == 24 and len(data.test) == 6
