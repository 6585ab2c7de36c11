"""MNIST's file format, IDX: MNIST, Fashion-MNIST and their like."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxkd.data.builders import plain

_FILES = (
  "train-images-idx3-ubyte.gz",
  "train-labels-idx1-ubyte.gz",
  "t10k-images-idx3-ubyte.gz",
  "t10k-labels-idx1-ubyte.gz",
)
_URLS = {
  "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
  "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
}
_UNSIGNED_BYTES = 8


class IdxImages(plain.FilesBuilder):
  """Images and labels from four IDX files."""

  BUILDER_CONFIGS: ClassVar = [
    plain.FilesConfig(name=name, files=_FILES, url=url) for name, url in _URLS.items()
  ]

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Any:
    train_images, train_labels, test_images, test_labels = self._files(dl_manager)
    return {
      "train": self._generate_examples(train_images, train_labels),
      "test": self._generate_examples(test_images, test_labels),
    }

  def _generate_examples(self, image_file: Path, label_file: Path) -> Any:
    images, labels = read_idx(image_file), read_idx(label_file)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
      raise ValueError(f"{image_file} {images.shape} does not go with {label_file} {labels.shape}")
    return plain.records(images[..., None], labels)


def read_idx(file: Path) -> np.ndarray:
  """The uint8 array in an IDX file, which may be packed with gzip.

  The format: two zero bytes, the type (8 for unsigned bytes), the number of dimensions, each
  dimension as a big-endian 32-bit number, the values.

  Raises:
    ValueError: naming the file, if it is no IDX file of bytes or is cut short.
  """
  data = file.read_bytes()
  if data[:2] == b"\x1f\x8b":
    try:
      data = gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
      raise ValueError(f"{file} is damaged: {error}") from error
  if len(data) < 4 or data[:3] != bytes([0, 0, _UNSIGNED_BYTES]):
    raise ValueError(f"{file} is not an IDX file of unsigned bytes")
  start = 4 + 4 * data[3]
  shape = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4))
  if len(data) - start != math.prod(shape):
    raise ValueError(f"{file} is damaged: {len(data)} bytes do not hold an array {shape}")
  return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
