"""Readers for torch.save and safetensors files that run no code of the file."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxkd.errors import ConfigError, needed_by
from jaxkd.models.torch.pickle import Storage, unpickle

# safetensors.numpy writes bfloat16 but does not read it, so that arrays are created here.
_DTYPES = {
  "F64": "float64",
  "F32": "float32",
  "F16": "float16",
  "BF16": "bfloat16",
  "I64": "int64",
  "I32": "int32",
  "I16": "int16",
  "I8": "int8",
  "U64": "uint64",
  "U32": "uint32",
  "U16": "uint16",
  "U8": "uint8",
  "BOOL": "bool",
}
# The first two objects of a file of torch.save before PyTorch 1.6.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read_torch_file(path: str | Path) -> Any:
  """Read a file of `torch.save` or safetensors, with numpy arrays for tensors.

  Files that end in .safetensors are read as such. For all others (.pth, .pt, .tar, .pkl) the
  content determines which of torch.save's two formats they have: a zip archive, or, before PyTorch
  1.6, pickles followed by the storages. Neither is unpickled by Python: names of functions and
  classes are looked up in a short fixed list, and any other name is refused before any code runs.

  Args:
    path: the file.

  Returns:
    Usually a dict. Tensors are read-only arrays of the file's precision (ml_dtypes' bfloat16) on
    the CPU, from any device; options and arrays of numpy are empty placeholders.

  Raises:
    ConfigError: for a missing, truncated or damaged file, a file of another kind, a pickle with a
      name that tensors do not need, or if safetensors is not installed.
  """
  path = Path(path)
  if not os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
    raise ConfigError(f"{path}: no such file")
  if path.suffix == ".safetensors":
    return _read_safetensors(path)
  with path.open("rb") as file:
    start = file.read(2)
  try:
    if start == b"PK":
      return _read_zip(path)
    if start[:1] == b"\x80":  # the start of every pickle since protocol 2
      return _read_legacy(path)
  except ConfigError:
    raise
  except Exception as error:  # a damaged pickle can raise any exception
    raise ConfigError(f"{path}: truncated or damaged: {error!r}") from error
  raise ConfigError(f"{path}: neither a file of torch.save nor, by its name, a .safetensors file")


def arrays_in(data: bytes) -> dict[str, np.ndarray]:
  """The arrays of a safetensors file by name, as read-only views of its bytes.

  Raises:
    MissingPackage: if the package safetensors is not installed.
    ValueError: for damaged data, or a dtype without an equivalent in numpy.
  """
  with needed_by("reading .safetensors"):
    from safetensors import (  # optional: the core of jaxkd does not need it
      SafetensorError,
      deserialize,
    )

  try:
    return {
      name: np.frombuffer(entry["data"], jnp.dtype(_DTYPES[entry["dtype"]])).reshape(entry["shape"])
      for name, entry in deserialize(data)
    }
  except KeyError as error:
    raise ValueError(f"tensors of dtype {error} are not read") from error
  except SafetensorError as error:
    raise ValueError(str(error)) from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
  try:
    return arrays_in(path.read_bytes())
  except ImportError as error:
    raise ConfigError(
      f"{path}: reading it needs the package safetensors (pip install safetensors)"
    ) from error
  except ValueError as error:
    raise ConfigError(f"{path}: truncated or damaged: {error}") from error


def _read_zip(path: Path) -> Any:
  with zipfile.ZipFile(path) as archive:
    names = set(archive.namelist())
    roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
    if len(roots) != 1:
      raise ConfigError(f"{path}: a zip archive, but not one of torch.save: no data.pkl in it")
    (root,) = roots
    if f"{root}constants.pkl" in names:
      raise ConfigError(
        f"{path}: a TorchScript archive, which holds code: save the module's state_dict() instead"
      )

    def record(name: str) -> bytes:
      info = archive.getinfo(root + name)
      # PyTorch compresses no record; a compressed one could expand to any size.
      if info.compress_type != zipfile.ZIP_STORED:
        raise ConfigError(f"{path}: {root + name} is compressed, which torch.save never does")
      return archive.read(info)

    swapped = f"{root}byteorder" in names and record("byteorder") == b"big"
    records: dict[str, bytes] = {}

    def storage(wanted: Storage) -> np.ndarray:
      if wanted.key not in records:
        records[wanted.key] = record(f"data/{wanted.key}")
      elements = _elements(records[wanted.key], wanted, swapped)
      return elements if wanted.view is None else _view(elements, wanted.view)

    return unpickle(io.BytesIO(record("data.pkl")), path, storage)


def _read_legacy(path: Path) -> Any:
  data = path.read_bytes()
  stream = io.BytesIO(data)
  if unpickle(stream, path) != _MAGIC:
    raise ConfigError(f"{path}: a pickle, but not one of torch.save")
  if (protocol := unpickle(stream, path)) != _PROTOCOL:
    raise ConfigError(f"{path}: protocol {protocol} of torch.save, only {_PROTOCOL} is supported")
  unpickle(stream, path)  # describes the machine; storages are always little-endian
  storages: dict[str, np.ndarray] = {}

  def storage(wanted: Storage) -> np.ndarray:
    if wanted.key not in storages:
      taken = sum(elements.nbytes for elements in storages.values())
      if taken + wanted.size * wanted.dtype.itemsize > len(data):
        raise ValueError("storages of more bytes than the file has")
      # The elements follow after the tensors in the file: filled in below.
      storages[wanted.key] = np.zeros(wanted.size, wanted.dtype)
    elements = storages[wanted.key]
    if (elements.dtype, elements.size) != (wanted.dtype, wanted.size):
      raise ValueError(f"storage {wanted.key} has two different descriptions")
    return elements if wanted.view is None else _view(elements, wanted.view)

  value = unpickle(stream, path, storage)
  keys = unpickle(stream, path)
  if sorted(keys) != sorted(storages):
    raise ValueError(f"storages {sorted(keys)}, expected {sorted(storages)}")
  for key in keys:
    elements = storages[key]
    if int.from_bytes(stream.read(8), "little") != elements.size:
      raise ValueError(f"storage {key} is not of {elements.size} elements")
    raw = stream.read(elements.nbytes)
    if len(raw) != elements.nbytes:
      raise ValueError(f"storage {key} ends after {len(raw)} of {elements.nbytes} bytes")
    elements.view(np.uint8)[:] = np.frombuffer(raw, np.uint8)
  return value


def _elements(data: bytes, storage: Storage, swapped: bool) -> np.ndarray:
  """The bytes of a record as the elements of a storage."""
  if storage.size * storage.dtype.itemsize > len(data):
    raise ValueError(f"storage {storage.key} has {len(data)} bytes, too few")
  if not swapped:
    return np.frombuffer(data, storage.dtype, storage.size)
  # A complex number is two real ones, whose bytes are swapped separately.
  unit = storage.dtype.itemsize // (2 if storage.dtype.kind == "c" else 1)
  count = storage.size * storage.dtype.itemsize // unit
  return np.frombuffer(data, f">u{unit}", count).astype(f"=u{unit}").view(storage.dtype)


def _view(elements: np.ndarray, view: tuple[int, int]) -> np.ndarray:
  first, count = view
  return elements[first : first + count]
