"""Photographs of many sizes as images of one: ImageNet's records."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.errors import needed_by

# Records of which only the labels are wanted, read at a time.
_CHUNK = 512


class Photographs:
  """Random access to records whose encoded images are decoded and shrunk when they are asked for.

  Attributes:
    encoded: a tfds data source that leaves "image" encoded (`tfds.decode.SkipDecoding`).
    side: of the square images that `shrink` makes.
  """

  def __init__(self, encoded: Any, side: int) -> None:
    self.encoded = encoded
    self.side = side

  def __len__(self) -> int:
    return len(self.encoded)

  def __getitems__(self, keys: Sequence[int]) -> list[dict[str, Any]]:
    """Records {"image": (side, side, 3) uint8, "label"}."""
    return [
      {"image": shrink(record["image"], self.side), "label": record["label"]}
      for record in self.encoded.__getitems__(keys)
    ]


class Labels:
  """Random access to records that hold the label alone, of a split whose images are large.

  A label cannot be read without its record, and ImageNet's records are 140 GB. They are read once:
  the labels are then kept in `file`, where that can be written.

  Attributes:
    labels: (N,) int32.
  """

  def __init__(self, encoded: Any, file: Path) -> None:
    self.labels = _kept(file, len(encoded))
    if self.labels is None:
      self.labels = _read(encoded)
      _keep(file, self.labels)

  def __len__(self) -> int:
    return len(self.labels)

  def __getitems__(self, keys: Sequence[int]) -> list[dict[str, Any]]:
    """Records {"label"}."""
    return [{"label": self.labels[key]} for key in keys]


def shrink(encoded: bytes, side: int) -> np.ndarray:
  """The central square (side, side, 3) uint8 of an encoded image whose shorter side becomes `side`.

  Source: torchvision's Resize and CenterCrop as the published ImageNet recipes evaluate: linear,
  averaging where it shrinks, the longer side and the margins rounded down and to even.
  """
  with needed_by("decoding photographs"):
    from PIL import Image  # Only photographs need it.

  with Image.open(io.BytesIO(encoded)) as opened:
    image = opened.convert("RGB")
  width, height = image.size
  shorter = min(width, height)
  width, height = width * side // shorter, height * side // shorter
  image = image.resize((width, height), Image.Resampling.BILINEAR)
  left, top = round((width - side) / 2), round((height - side) / 2)
  return np.asarray(image)[top : top + side, left : left + side]


def _read(encoded: Any) -> np.ndarray:
  labels = np.empty(len(encoded), np.int32)
  for start in range(0, len(labels), _CHUNK):
    stop = min(start + _CHUNK, len(labels))
    records = encoded.__getitems__(list(range(start, stop)))
    labels[start:stop] = [record["label"] for record in records]
  return labels


def _kept(file: Path, count: int) -> Any:
  try:
    # Mapped, so that no more memory is taken than the file has bytes, whatever it says.
    labels = np.load(file, mmap_mode="r")
  except (OSError, ValueError, EOFError):
    return None
  fit = isinstance(labels, np.ndarray) and labels.shape == (count,) and labels.dtype == np.int32
  return np.array(labels) if fit else None


def _keep(file: Path, labels: np.ndarray) -> None:
  partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
  try:
    with partial.open("wb") as written:
      np.save(written, labels)
    partial.replace(file)
  except OSError:
    partial.unlink(missing_ok=True)  # A folder that others own: they are read again next time.
