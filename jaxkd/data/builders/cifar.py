"""CIFAR-10 and CIFAR-100 from the authors' binary archives."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxkd.data.builders import plain

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
# CIFAR-100 puts the superclass before the class.
_LABEL_BYTES = {"cifar10": 1, "cifar100": 2}
_SIDE = 32


class CifarBinary(plain.FilesBuilder):
  """Images and (fine) labels from one archive."""

  BUILDER_CONFIGS: ClassVar = [
    plain.FilesConfig(
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
    return plain.records(*read_cifar(archive, _MEMBERS[name][split], _LABEL_BYTES[name]))


def read_cifar(
  archive: Path, members: list[str], label_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
  """Images (N, 32, 32, 3) uint8 and labels (N,) of an archive's members.

  Each record is its label bytes, of which the last is the class, and three colour planes.

  Raises:
    ValueError: naming the archive, if a member is missing or of a wrong length.
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
