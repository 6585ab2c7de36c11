"""ImageNet's records: JPEGs of any size, decoded to square images of one size."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.errors import needed_by

# Number of records read at a time to collect their labels.
_CHUNK = 512


class ImageNetRecords:
  """Random access to records whose images are decoded and shrunk on access.

  Attributes:
    encoded: a tfds data source that leaves "image" encoded (`tfds.decode.SkipDecoding`).
    side: side of the square images that `shrink` returns.
  """

  def __init__(self, encoded: Any, side: int) -> None:
    self.encoded = encoded
    self.side = side

  def __len__(self) -> int:
    return len(self.encoded)

  def __getitems__(self, keys: Sequence[int]) -> list[dict[str, Any]]:
    """Return records {"image": (side, side, 3) uint8, "label"}."""
    return [
      {"image": shrink(record["image"], self.side), "label": record["label"]}
      for record in self.encoded.__getitems__(keys)
    ]


class ImageNetLabels:
  """Random access to the labels of a split as records {"label"}, cached in a file.

  A label cannot be read without its record, and ImageNet's records are 140 GB. They are read once;
  the labels are then cached in `file`, if it can be written.

  Attributes:
    labels: (N,) int32.
  """

  def __init__(self, encoded: Any, file: Path) -> None:
    self.labels = _cached_labels(file, len(encoded))
    if self.labels is None:
      self.labels = _read_labels(encoded)
      _cache_labels(file, self.labels)

  def __len__(self) -> int:
    return len(self.labels)

  def __getitems__(self, keys: Sequence[int]) -> list[dict[str, Any]]:
    """Return records {"label"}."""
    return [{"label": self.labels[key]} for key in keys]


def shrink(encoded: bytes, side: int) -> np.ndarray:
  """Decode an image, resize its shorter side to `side`, return the centre (side, side, 3) uint8.

  Source: torchvision's Resize and CenterCrop as in the evaluation of the published ImageNet
  recipes: linear with antialiasing; the longer side is rounded down, the margins to even.
  """
  with needed_by("decoding ImageNet's images"):
    from PIL import Image  # only ImageNet needs it

  with Image.open(io.BytesIO(encoded)) as opened:
    image = opened.convert("RGB")
  width, height = image.size
  shorter = min(width, height)
  width, height = width * side // shorter, height * side // shorter
  image = image.resize((width, height), Image.Resampling.BILINEAR)
  left, top = round((width - side) / 2), round((height - side) / 2)
  return np.asarray(image)[top : top + side, left : left + side]


def _read_labels(encoded: Any) -> np.ndarray:
  labels = np.empty(len(encoded), np.int32)
  for start in range(0, len(labels), _CHUNK):
    stop = min(start + _CHUNK, len(labels))
    records = encoded.__getitems__(list(range(start, stop)))
    labels[start:stop] = [record["label"] for record in records]
  return labels


def _cached_labels(file: Path, count: int) -> Any:
  try:
    # Memory-mapped: a damaged header cannot make numpy allocate more than the file's size.
    labels = np.load(file, mmap_mode="r")
  except (OSError, ValueError, EOFError):
    return None
  fit = isinstance(labels, np.ndarray) and labels.shape == (count,) and labels.dtype == np.int32
  return np.array(labels) if fit else None


def _cache_labels(file: Path, labels: np.ndarray) -> None:
  partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
  try:
    with partial.open("wb") as written:
      np.save(written, labels)
    partial.replace(file)
  except OSError:
    partial.unlink(missing_ok=True)  # a read-only folder: labels are read again next time
