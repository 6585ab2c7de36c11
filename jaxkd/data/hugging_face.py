"""Data sets of Hugging Face's `datasets`: an object, or a folder of `save_to_disk`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxkd.data.assembly import MEMORY_LIMIT, Parts, check_side
from jaxkd.data.dataset import Dataset
from jaxkd.data.rows import Rows, dataset_of_rows, usual_splits
from jaxkd.errors import ConfigError, needed_by, one_line


def from_hugging_face(
  data: Any,
  *,
  columns: tuple[str, str] | None = None,
  image_size: int = 0,
  validation: float | int = 0.1,
  test: float | int | None = None,
  seed: int = 0,
  memory_limit: int = MEMORY_LIMIT,
) -> Dataset:
  """Return a data set of Hugging Face's `datasets`, from this machine alone.

  Args:
    data: a `datasets.Dataset`, a `datasets.DatasetDict` with a split "train", or the path of a
      folder that `save_to_disk` wrote. The splits "validation" ("valid", "val", "dev") and "test"
      are used where there are any.
    columns: names of the columns of the images and the class numbers; None finds the only `Image`
      and the only `ClassLabel`, or the columns "image" ("img") and "label".
    image_size: side of squares to which all images are resized and cropped; 0 keeps their size,
      which must be the same for all.
    validation: fraction or count of the training examples, if there is no validation split.
    test: fraction or count of the training examples, if there is no test split; None is 0.2. The
      choice does not depend on `seed`, so that runs of several seeds have the same test examples.
    seed: seed of the choice of validation examples.
    memory_limit: bytes; the images of a larger split are read on access.

  Raises:
    ConfigError: naming the path, the column, or the split and the row.
  """
  check_side(image_size)
  parts = Parts(validation, test, seed)
  name = "hf"
  if isinstance(data, (str, os.PathLike)):
    name, data = f"hf:{os.fspath(data)}", _from_disk(Path(data).expanduser())
  splits = dict(data) if isinstance(data, Mapping) else {"train": data}
  names = usual_splits(name, list(splits))
  chosen = {split: splits[theirs] for split, theirs in names.items()}
  image, label = columns or _columns(name, splits["train"])
  for split, part in chosen.items():
    for column in (image, label):
      if column not in part.features:
        raise ConfigError(f"{name}: {split} has {', '.join(part.features)}, but no {column!r}")
  classes = getattr(splits["train"].features[label], "names", None)
  for split, part in chosen.items():
    theirs = getattr(part.features[label], "names", None)
    if theirs != classes:
      raise ConfigError(
        f"{name}: classes of {split} are {theirs!r:.200}, those of train {classes!r:.200}: "
        "expected the same, in the same order"
      )
  rows = {
    split: Rows(
      _encoded(part.select_columns([image, label]), image),
      f"{name}: {split}",
      keys=(image, label),
      side=image_size,
    )
    for split, part in chosen.items()
  }
  return dataset_of_rows(name, rows, parts, classes=classes, memory_limit=memory_limit)


def _from_disk(path: Path) -> Any:
  if not path.is_dir():
    raise ConfigError(f"hf:{path}: there is no such folder; expected one that save_to_disk wrote")
  with needed_by(f"hf:{path}", extra="hf"):
    import datasets

  try:
    return datasets.load_from_disk(str(path))
  except Exception as error:  # datasets and pyarrow raise many kinds for damaged files
    raise ConfigError(
      f"hf:{path}: expected a folder that save_to_disk wrote: {one_line(error)}"
    ) from error


def _encoded(part: Any, image: str) -> Any:
  """Return the rows of a split with encoded pictures, which are decoded at the size wanted."""
  if _kind(part.features[image]) != "Image":
    return part.with_format("numpy")
  with needed_by("jaxkd.data.from_hugging_face", extra="hf"):
    import datasets

  return part.cast_column(image, datasets.Image(decode=False))


def _columns(name: str, part: Any) -> tuple[str, str]:
  """Return the names of the columns of the images and the labels."""
  found = []
  for kind, usual in (("Image", ("image", "img")), ("ClassLabel", ("label", "fine_label"))):
    columns = [column for column, feature in part.features.items() if _kind(feature) == kind]
    if len(columns) != 1:
      columns = [column for column in usual if column in part.features][:1]
    if not columns:
      raise ConfigError(
        f"{name} has columns {', '.join(part.features)}: expected one {kind}; `columns` of "
        "jaxkd.data.from_hugging_face names them"
      )
    found += columns
  return found[0], found[1]


def _kind(feature: Any) -> str:
  return type(feature).__name__
