"""Reading the files in which PyTorch and safetensors keep arrays, without running code."""

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

# safetensors.numpy writes bfloat16 but does not read it, so the arrays are made here.
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


def arrays_in(data: bytes) -> dict[str, np.ndarray]:
  """Name -> array, read-only views of `data`.

  Raises:
    MissingPackage: where the package safetensors is not installed.
    ValueError: for damaged data, or a dtype that numpy has no like of.
  """
  with needed_by("reading .safetensors"):
    from safetensors import SafetensorError, deserialize  # the core of jaxkd does without it

  try:
    return {
      name: np.frombuffer(entry["data"], jnp.dtype(_DTYPES[entry["dtype"]])).reshape(entry["shape"])
      for name, entry in deserialize(data)
    }
  except KeyError as error:
    raise ValueError(f"tensors of dtype {error} are not read") from error
  except SafetensorError as error:
    raise ValueError(str(error)) from error


_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read_torch_file(path: str | Path) -> Any:
  """What `torch.save` or safetensors wrote, with numpy arrays for tensors.

  Files that end in .safetensors are read as such. Of all others (.pth, .pt, .tar, .pkl) the content
  tells which of torch.save's two formats they have: a zip archive, or, before PyTorch 1.6, pickles
  followed by the storages. Neither is unpickled as Python would: names of functions and classes
  are looked up in a short fixed list, and any other is refused before anything runs.

  Args:
    path: the file.

  Returns:
    Usually a dict. Tensors are read-only arrays of the file's precision (bfloat16 is ml_dtypes'),
    on the CPU wherever they were; options and numpy scalars are stand-ins that hold nothing.

  Raises:
    ConfigError: for a missing, truncated or damaged file, a file of another kind, a pickle that
      names anything else than tensors need, or where safetensors is not installed.
  """
  path = Path(path)
  if not os.path.isfile(path):  # unlike Path's, of a name that is too long, too
    raise ConfigError(f"{path}: no such file")
  if path.suffix == ".safetensors":
    return _read_safetensors(path)
  with path.open("rb") as file:
    start = file.read(2)
  try:
    if start == b"PK":
      return _read_zip(path)
    if start[:1] == b"\x80":  # how every pickle starts since protocol 2
      return _read_legacy(path)
  except ConfigError:
    raise
  except Exception as error:  # a damaged pickle can fail in any way
    raise ConfigError(f"{path}: truncated or damaged: {error!r}") from error
  raise ConfigError(f"{path}: neither a file of torch.save nor, by its name, a .safetensors file")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
  try:
    return arrays_in(path.read_bytes())
  except ImportError as error:
    raise ConfigError(
      f"{path}: reading it takes the package safetensors (pip install safetensors)"
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
      # Torch compresses nothing; what does could expand to any size.
      if info.compress_type != zipfile.ZIP_STORED:
        raise ConfigError(f"{path}: {root + name} is compressed, which torch.save never does")
      return archive.read(info)

    swapped = f"{root}byteorder" in names and record("byteorder") == b"big"
    records: dict[str, bytes] = {}

    def storage(wanted: Storage) -> np.ndarray:
      if wanted.key not in records:
        records[wanted.key] = record(f"data/{wanted.key}")
      elements = _elements(records[wanted.key], wanted, swapped)
      return elements if wanted.view is None else _part(elements, wanted.view)

    return unpickle(io.BytesIO(record("data.pkl")), path, storage)


def _read_legacy(path: Path) -> Any:
  data = path.read_bytes()
  stream = io.BytesIO(data)
  if unpickle(stream, path) != _MAGIC:
    raise ConfigError(f"{path}: a pickle, but not one of torch.save")
  if (protocol := unpickle(stream, path)) != _PROTOCOL:
    raise ConfigError(f"{path}: protocol {protocol} of torch.save, where {_PROTOCOL} is known")
  unpickle(stream, path)  # about the machine; storages are little-endian on any
  storages: dict[str, np.ndarray] = {}

  def storage(wanted: Storage) -> np.ndarray:
    if wanted.key not in storages:
      taken = sum(elements.nbytes for elements in storages.values())
      if taken + wanted.size * wanted.dtype.itemsize > len(data):
        raise ValueError("storages of more bytes than the file has")
      # The elements follow after the tensors: filled in below.
      storages[wanted.key] = np.zeros(wanted.size, wanted.dtype)
    elements = storages[wanted.key]
    if (elements.dtype, elements.size) != (wanted.dtype, wanted.size):
      raise ValueError(f"storage {wanted.key} is described in two ways")
    return elements if wanted.view is None else _part(elements, wanted.view)

  value = unpickle(stream, path, storage)
  keys = unpickle(stream, path)
  if sorted(keys) != sorted(storages):
    raise ValueError(f"storages {sorted(keys)} where {sorted(storages)} are meant")
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
  # A complex number is two real ones, each swapped by itself.
  unit = storage.dtype.itemsize // (2 if storage.dtype.kind == "c" else 1)
  count = storage.size * storage.dtype.itemsize // unit
  return np.frombuffer(data, f">u{unit}", count).astype(f"=u{unit}").view(storage.dtype)


def _part(elements: np.ndarray, view: tuple[int, int]) -> np.ndarray:
  first, count = view
  return elements[first : first + count]
