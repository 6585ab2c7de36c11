"""TFDS builders of this project: CIFAR archives, digits, IDX files (MNIST, Fashion-MNIST).

They work without TensorFlow because images are stored as plain tensors. TFDS derives a builder's
name, and so its folder, from the class name: digits, cifar_binary, idx_images.
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxkd.data.subsets import permutation, stratified
from jaxkd.errors import needed_by

with needed_by("jaxkd.data.builders"):
  import tensorflow_datasets as tfds


@dataclasses.dataclass
class FilesConfig(tfds.core.BuilderConfig):
  """A data set that is published as files.

  Attributes:
    files: names as downloaded, compressed.
    url: base address, to which a file name is appended.
    num_classes: number of classes.
    image_shape: (H, W, C).
  """

  files: tuple[str, ...] = ()
  url: str = ""
  num_classes: int = 10
  image_shape: tuple[int, int, int] = (28, 28, 1)


class FilesBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """A builder that reads files from a folder, or downloads them.

  Args:
    folder: folder of the files, or None to download them. Unused once the data set is prepared.
    **kwargs: arguments of every TFDS builder: `config` (a name or a FilesConfig), `data_dir`.
  """

  VERSION = tfds.core.Version("1.0.0")
  builder_config: FilesConfig

  def __init__(self, *, folder: Path | None = None, **kwargs: Any) -> None:
    self._folder = folder
    super().__init__(**kwargs)

  @property
  def url_infos(self) -> Any:
    """Checksums of the stock builder. TFDS checks downloads only; Debian repacks its files."""
    return tfds.builder_cls(self.builder_config.name).url_infos

  def _info(self) -> tfds.core.DatasetInfo:
    config = self.builder_config
    return image_info(
      self,
      image_shape=config.image_shape,
      num_classes=config.num_classes,
      description=f"{config.name}, from the authors' files.",
      homepage=config.url,
    )

  def _files(self, dl_manager: tfds.download.DownloadManager) -> list[Path]:
    config = self.builder_config
    if self._folder is not None:
      found = {name: in_folder(self._folder, name) for name in config.files}
      missing = [name for name, file in found.items() if file is None]
      if missing:
        raise FileNotFoundError(f"{self._folder} has no {', '.join(missing)}")
      return [file for file in found.values() if file is not None]
    # Unpacked by this module: tfds needs TensorFlow for that.
    files = dl_manager.download({name: config.url + name for name in config.files})
    return [Path(files[name]) for name in config.files]


def in_folder(folder: Path, name: str) -> Path | None:
  """Return the path of a file in a folder, compressed or not, or None if neither exists."""
  candidates = (folder / name, folder / name.removesuffix(".gz"))
  return next((file for file in candidates if file.is_file()), None)


def image_info(
  builder: tfds.core.DatasetBuilder,
  *,
  image_shape: tuple[int, ...],
  num_classes: int,
  description: str,
  homepage: str,
) -> tfds.core.DatasetInfo:
  """Describe records {"image": uint8 tensor, "label"}, unshuffled: indices follow the source."""
  return tfds.core.DatasetInfo(
    builder=builder,
    description=description,
    homepage=homepage,
    features=tfds.features.FeaturesDict(
      {
        # Image features would need TensorFlow to encode.
        "image": tfds.features.Tensor(shape=image_shape, dtype=np.uint8),
        "label": tfds.features.ClassLabel(num_classes=num_classes),
      }
    ),
    supervised_keys=("image", "label"),
    disable_shuffling=True,
  )


def records(images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yield (key, record) pairs, as `_generate_examples` must."""
  for key, (image, label) in enumerate(zip(images, labels, strict=True)):
    yield key, {"image": image, "label": int(label)}


# CIFAR: the members of an archive by split.
_MEMBERS = {
  "cifar10": {
    "train": [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)],
    "test": ["cifar-10-batches-bin/test_batch.bin"],
  },
  "cifar100": {
    "train": ["cifar-100-binary/train.bin"],
    "test": ["cifar-100-binary/test.bin"],
  },
}
# A CIFAR-100 record has the superclass before the class.
_LABEL_BYTES = {"cifar10": 1, "cifar100": 2}
_SIDE = 32


class CifarBinary(FilesBuilder):
  """CIFAR-10 and CIFAR-100: images and (fine) labels from one archive."""

  BUILDER_CONFIGS: ClassVar = [
    FilesConfig(
      name=f"cifar{classes}",
      files=(f"cifar-{classes}-binary.tar.gz",),
      url="https://www.cs.toronto.edu/~kriz/",
      num_classes=classes,
      image_shape=(_SIDE, _SIDE, 3),
    )
    for classes in (10, 100)
  ]

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Any:
    (archive,) = self._files(dl_manager)
    return {split: self._generate_examples(archive, split) for split in ("train", "test")}

  def _generate_examples(self, archive: Path, split: str) -> Any:
    name = self.builder_config.name
    return records(*read_cifar(archive, _MEMBERS[name][split], _LABEL_BYTES[name]))


def read_cifar(
  archive: Path, members: list[str], label_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
  """Read images (N, 32, 32, 3) uint8 and labels (N,) from members of an archive.

  A record is `label_bytes` bytes, the last of which is the class, then three colour planes.

  Raises:
    ValueError: naming the archive, if a member is missing or has a wrong length.
  """
  record_bytes = label_bytes + 3 * _SIDE * _SIDE
  try:
    with tarfile.open(archive, "r:gz") as tar:
      data = [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
  except (KeyError, EOFError, tarfile.TarError, OSError) as error:
    raise ValueError(f"{archive} is damaged: {error}") from error
  if any(len(part) % record_bytes for part in data):
    raise ValueError(f"{archive} is damaged: {members} are not records of {record_bytes} bytes")
  rows = np.frombuffer(b"".join(data), np.uint8).reshape(-1, record_bytes)
  planes = rows[:, label_bytes:].reshape(-1, 3, _SIDE, _SIDE)
  return planes.transpose(0, 2, 3, 1), rows[:, label_bytes - 1]


# Digits: size and seed of the fixed test split.
_TEST_EXAMPLES = 360
_SPLIT_SEED = 0


class Digits(tfds.core.GeneratorBasedBuilder):
  """1797 handwritten digits of 8x8 pixels: 1437 for training, 360 for testing.

  scikit-learn's copy of the test part of UCI's "Optical Recognition of Handwritten Digits" has no
  split. This split is stratified and fixed: `jaxkd.data.subsets` with seed 0 shuffles the examples,
  which the source sorts by writer, and marks 360 of them as the test split. Pixels of 0..16 are
  stored as round(255 / 16 * pixel), which is invertible.
  """

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return image_info(
      self,
      image_shape=(8, 8, 1),
      num_classes=10,
      description="Handwritten digits of 8x8 pixels, from scikit-learn, with a fixed split.",
      homepage="https://archive.ics.uci.edu/dataset/80",
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Any:
    with needed_by("preparing digits"):
      from sklearn.datasets import load_digits  # needed once, to prepare the data set

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    order = permutation(len(labels), _SPLIT_SEED)
    images, labels = images[order], labels[order]
    test = stratified(labels, _TEST_EXAMPLES, _SPLIT_SEED)
    return {
      "train": self._generate_examples(images[~test], labels[~test]),
      "test": self._generate_examples(images[test], labels[test]),
    }

  def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Any:
    return records(images, labels)


# MNIST and Fashion-MNIST: both consist of these files.
_IDX_FILES = (
  "train-images-idx3-ubyte.gz",
  "train-labels-idx1-ubyte.gz",
  "t10k-images-idx3-ubyte.gz",
  "t10k-labels-idx1-ubyte.gz",
)
_IDX_URLS = {
  "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
  "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
}
_UNSIGNED_BYTES = 8


class IdxImages(FilesBuilder):
  """MNIST and Fashion-MNIST: images and labels from four IDX files."""

  BUILDER_CONFIGS: ClassVar = [
    FilesConfig(name=name, files=_IDX_FILES, url=url) for name, url in _IDX_URLS.items()
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
    return records(images[..., None], labels)


def read_idx(file: Path) -> np.ndarray:
  """Read the uint8 array of an IDX file, which may be compressed with gzip.

  The format: two zero bytes, the type (8: unsigned bytes), the number of dimensions, each dimension
  as a big-endian 32-bit number, the values.

  Raises:
    ValueError: naming the file, if it is no IDX file of bytes or is truncated.
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
