"""A data set from the arrays in an .npz file."""

from __future__ import annotations

import contextlib
import os
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.data.arrays import dataset_of_pairs
from jaxkd.data.assembly import Parts
from jaxkd.data.dataset import Dataset
from jaxkd.errors import ConfigError, one_line

# Keys of the images and the labels of each split in .npz files, in the styles that are read.
_STYLES = (
  {
    "train": ("x_train", "y_train"),
    "validation": ("x_val", "y_val"),
    "test": ("x_test", "y_test"),
  },
  {
    "train": ("train_images", "train_labels"),
    "validation": ("val_images", "val_labels"),
    "test": ("test_images", "test_labels"),
  },
  {
    "train": ("images", "labels"),
    "validation": ("validation_images", "validation_labels"),
    "test": ("test_images", "test_labels"),
  },
)


def from_npz(
  path: str | os.PathLike[str],
  *,
  validation: float | int = 0.1,
  test: float | int | None = None,
  classes: int | Sequence[str] | None = None,
  seed: int = 0,
  image_size: int = 0,
) -> Dataset:
  """Return the data set of an .npz file; nothing in it is unpickled.

  The arrays are named `images` and `labels`, or x_train, y_train, x_test, y_test as by Keras, or
  train_images, train_labels, val_images, ... as by MedMNIST. Splits that the file lacks are held
  out. `unlabelled_images` are further training images without labels; `class_names` are texts.

  Args:
    path: the file.
    validation: as for `from_arrays`, where the file has no validation split.
    test: as for `from_arrays`, where the file has no test split.
    classes: as for `from_arrays`; None is the file's class names, or else the largest label + 1.
    seed: as for `from_arrays`.
    image_size: as for `from_arrays`.

  Raises:
    ConfigError: naming the file and the array.
  """
  path = Path(path).expanduser()
  name = f"npz:{path}"
  parts = Parts(validation, test, seed)
  with _arrays_of(path) as arrays:
    keys = set(arrays)
    style = next((s for s in _STYLES if s["train"][0] in keys), None)
    if style is None:
      raise ConfigError(
        f"{path} has {', '.join(sorted(keys)) or 'no arrays'}: expected images and labels, or "
        "x_train, y_train, ..., or train_images, train_labels, ..."
      )
    _check_all_read(path, keys, style)
    pairs = {}
    for split, (images, labels) in style.items():
      if (images in keys) != (labels in keys):
        have, lack = (images, labels) if images in keys else (labels, images)
        raise ConfigError(f"{path} has {have}, but no {lack}")
      if images in keys:
        pairs[split] = (arrays[images], arrays[labels])
    if classes is None and "class_names" in keys:
      classes = [str(text) for text in arrays["class_names"].tolist()]
    unlabelled = arrays["unlabelled_images"] if "unlabelled_images" in keys else None
  try:
    return dataset_of_pairs(name, pairs, parts, classes, unlabelled, image_size)
  except ConfigError as error:
    raise ConfigError(f"{path}: {error}") from error


# Names of arrays that are meant to hold a split are one of each, in either order.
_SPLITS = {"val", "valid", "validation", "dev", "test"}
_KINDS = {"x", "y", "images", "labels"}


def _check_all_read(
  path: Path, keys: Collection[str], style: Mapping[str, tuple[str, str]]
) -> None:
  """Raise a ConfigError for an array of a split, by its name, that this style does not read."""
  read = {name for pair in style.values() for name in pair}
  for key in sorted(set(keys) - read):
    words = set(key.lower().split("_"))
    if len(words) == 2 and words & _SPLITS and words & _KINDS:
      raise ConfigError(
        f"{path} has {key}, which is not read beside {style['train'][0]}: expected names of "
        f"{', '.join(sorted(read))}"
      )


class _Arrays(dict[str, Any]):
  """Names and arrays of an .npz file, each read on access; errors name the file and the array."""

  def __init__(self, path: Path, file: Any) -> None:
    super().__init__(dict.fromkeys(file.files))
    self.path, self.file = path, file

  def __getitem__(self, key: str) -> np.ndarray:
    try:
      return self.file[key]
    except (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
      reason = one_line(error)
      if "allow_pickle" in reason:
        reason = "it holds Python objects, which would have to be unpickled; expected numbers"
      raise ConfigError(f"{self.path}: {key} cannot be read: {reason}") from error


@contextlib.contextmanager
def _arrays_of(path: Path) -> Iterator[_Arrays]:
  if not path.is_file():
    raise ConfigError(f"{path}: there is no such file")
  with contextlib.ExitStack() as opened:
    try:
      # Opened here, as numpy leaves a file that it cannot read open.
      file = np.load(opened.enter_context(path.open("rb")), allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
      raise ConfigError(f"{path} is no .npz file of arrays: {one_line(error)}") from error
    if not isinstance(file, np.lib.npyio.NpzFile):
      raise ConfigError(f"{path} holds one array, expected an .npz file with images and labels")
    yield _Arrays(path, file)
