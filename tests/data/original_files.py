"""Writers of tiny files in the original formats of the data sets: IDX and CIFAR archives."""

import gzip
import io
import tarfile

import numpy as np


def write_idx(file, array, packed=True):
  header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
  data = header + array.tobytes()
  file.write_bytes(gzip.compress(data) if packed else data)


def write_cifar(file, members):
  with tarfile.open(file, "w:gz") as tar:
    for name, data in members.items():
      entry = tarfile.TarInfo(name)
      entry.size = len(data)
      tar.addfile(entry, io.BytesIO(data))


def cifar_records(images, *labels):
  planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
  return np.column_stack([*labels, planes]).astype(np.uint8).tobytes()
