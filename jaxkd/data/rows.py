"""Splits whose items are read one at a time: (image, label), or a mapping of both."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.data.arrays import as_images, as_labels, check_classes
from jaxkd.data.assembly import Parts, assemble, held
from jaxkd.data.dataset import Dataset
from jaxkd.data.pictures import Header, decode, in_threads, read_header, square
from jaxkd.errors import ConfigError, one_line

# Names under which mappings have an image and a label.
_IMAGES = ("image", "images", "img", "pixels", "x")
_LABELS = ("label", "labels", "fine_label", "class", "target", "y")


# Names of a split of validation examples in other libraries, the first of which is used.
_VALIDATION = ("validation", "valid", "val", "dev")


def usual_splits(name: str, available: Sequence[str]) -> dict[str, str]:
  """Return "train", and "validation" and "test" if there are any, with their names in a library.

  Args:
    name: name of the data set in errors.
    available: names of its splits; other splits are left out.

  Raises:
    ConfigError: if there is no split "train".
  """
  if "train" not in available:
    raise ConfigError(f"{name} has no split train, only {', '.join(available) or 'none'}")
  found = {"train": "train"}
  if validations := [split for split in _VALIDATION if split in available]:
    found["validation"] = validations[0]
  if "test" in available:
    found["test"] = "test"
  return found


class Rows:
  """Random access to the items of one split.

  Attributes:
    source: has `__len__` and `__getitem__`. An image is an array as for `from_arrays`, a Pillow
      image, the bytes of a picture file, or a mapping with its "bytes" or "path".
    split: name of the split in errors.
    keys: names of image and label in mappings, or None for the usual ones.
    side: side of squares to which images are resized; 0 keeps their size.
    common: size and channels that the images of all splits have, once they are known.
  """

  def __init__(
    self, source: Any, split: str, *, keys: tuple[str, str] | None = None, side: int = 0
  ) -> None:
    if isinstance(source, Mapping) or not (
      hasattr(source, "__len__") and hasattr(source, "__getitem__")
    ):
      raise ConfigError(
        f"{split}: expected a source with __len__ and __getitem__, such as a list of "
        f"(image, label), got {type(source).__name__}"
      )
    self.source, self.split, self.keys, self.side = source, split, keys, side
    self.common = Header((0, 0), 0)
    self._one_at_a_time = threading.Lock()  # a source may share one open file

  def __len__(self) -> int:
    return len(self.source)

  def __getitems__(self, keys: Sequence[int]) -> list[dict[str, Any]]:
    """Return records {"image": (H, W, C) uint8}, decoded by several threads."""
    return list(in_threads(self._record, keys))

  def scan(self) -> tuple[np.ndarray, Header]:
    """Read every item; return the labels (N,) int32, and what the images have in common.

    Raises:
      ConfigError: naming the row that cannot be read, whose label is no class, or whose image has
        another size than the first one.
    """
    if not len(self):
      raise ConfigError(f"{self.split}: there are no examples")
    labels, first, most = [], None, 0
    for key in range(len(self)):
      image, label = self._item(key)
      labels.append(self._label(key, label))
      header = self._header(key, image)
      first, most = first or header, max(most, header.channels)
      if header.size != first.size and not self.side:
        raise ConfigError(
          f"{self._where(0)} has an image of {first.size}, {self._where(key)} one of "
          f"{header.size}; image_size (data.image_size) brings all to squares of one size"
        )
    assert first is not None
    size = (self.side, self.side) if self.side else first.size
    return as_labels(np.array(labels), f"{self.split} labels"), Header(size, most)

  def _where(self, key: int) -> str:
    return f"{self.split} row {key}"

  def _item(self, key: int) -> tuple[Any, Any]:
    """Return (image, label) of one row."""
    try:
      with self._one_at_a_time:
        item = self.source[int(key)]
    except Exception as error:  # whatever a source of the user's raises
      reason = f"{type(error).__name__}: {one_line(error)}"
      raise ConfigError(f"{self._where(key)} cannot be read: {reason}") from error
    if isinstance(item, Mapping):
      image, label = self.keys or (_name_in(item, _IMAGES), _name_in(item, _LABELS))
      if image not in item or label not in item:
        raise ConfigError(
          f"{self._where(key)} has {', '.join(map(str, item))}: expected an image and a label"
        )
      return _picture(item[image]), item[label]
    if isinstance(item, (tuple, list)) and len(item) == 2:
      return _picture(item[0]), item[1]
    raise ConfigError(
      f"{self._where(key)}: expected (image, label) or a mapping with both, got "
      f"{type(item).__name__}"
    )

  def _label(self, key: int, label: Any) -> Any:
    number = np.asarray(label)
    if number.size != 1 or number.dtype.kind not in "iu":
      as_labels(number.reshape(-1), f"{self._where(key)}: label")
      raise ConfigError(f"{self._where(key)}: label: expected one class number, got {label!r:.60}")
    return int(number.reshape(()))

  def _header(self, key: int, image: Any) -> Header:
    if _is_picture(image):
      return read_header(image, self._where(key))
    shape = as_images(np.asarray(image)[None], self._where(key)).shape[1:]
    return Header((shape[0], shape[1]), shape[2])

  def _record(self, key: int) -> dict[str, Any]:
    image, _ = self._item(key)
    where, (size, channels) = self._where(key), self.common
    if _is_picture(image):
      pixels = decode(image, channels=channels, side=self.side, where=where)
    else:
      pixels = as_images(np.asarray(image)[None], where)[0]
      if pixels.shape[-1] != channels:
        raise ConfigError(f"{where} has {pixels.shape[-1]} channels, others have {channels}")
      pixels = square(pixels, self.side) if self.side else pixels
    if pixels.shape[:2] != size:
      raise ConfigError(
        f"{where} has an image of {pixels.shape[:2]}, and had one of {size} when it was read "
        "before: expected the same item each time"
      )
    return {"image": pixels}


def dataset_of_rows(
  name: str,
  rows: Mapping[str, Rows],
  parts: Parts,
  *,
  classes: int | Sequence[str] | None,
  memory_limit: int,
) -> Dataset:
  """Return the data set of the rows of each split, "train" first.

  Raises:
    ConfigError: naming the split and the row.
  """
  found = {split: split_rows.scan() for split, split_rows in rows.items()}
  labels = [numbers for numbers, _ in found.values()]
  known = check_classes(classes, labels, list(found))
  size = found["train"][1].size
  channels = max(header.channels for _, header in found.values())
  splits = {}
  for split, (numbers, header) in found.items():
    if header.size != size:
      raise ConfigError(f"{split}: images are {header.size}, those of train {size}")
    rows[split].common = Header(size, channels)
    splits[split] = held(rows[split], numbers, (*size, channels), memory_limit)
  return assemble(name, splits, parts, classes=known)


def _name_in(item: Mapping[Any, Any], names: Sequence[str]) -> str:
  return next((name for name in names if name in item), names[0])


def _picture(image: Any) -> Any:
  """Return an image, or the picture in a mapping with its "bytes" or "path"."""
  if isinstance(image, Mapping) and {"bytes", "path"} & set(image):
    return image.get("bytes") or image.get("path") or b""
  return image


def _is_picture(image: Any) -> bool:
  return isinstance(image, (bytes, str)) or hasattr(image, "getexif")
