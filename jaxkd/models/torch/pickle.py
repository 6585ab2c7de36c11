"""Unpickling what PyTorch saves, without PyTorch, and without running what a pickle asks to run.

A pickle is a program: it names functions and calls them. Here it gets nothing but what the fixed
list below holds, all of it harmless, and whatever else it names is refused.
"""

from __future__ import annotations

import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.lib.stride_tricks import as_strided

from jaxkd.errors import ConfigError

_STORAGES = {
  "FloatStorage": "float32",
  "DoubleStorage": "float64",
  "HalfStorage": "float16",
  "BFloat16Storage": "bfloat16",
  "LongStorage": "int64",
  "IntStorage": "int32",
  "ShortStorage": "int16",
  "CharStorage": "int8",
  "ByteStorage": "uint8",
  "BoolStorage": "bool",
  "ComplexFloatStorage": "complex64",
  "ComplexDoubleStorage": "complex128",
}
# Published checkpoints hold these beside the weights: options, accuracies, schedules.
_INERT = (
  ("argparse", "Namespace"),
  ("collections", "Counter"),
  ("torch", "device"),
  *(("torch", name) for name in ("float64", "float32", "float16", "bfloat16")),
  *(("torch", name) for name in ("int64", "int32", "int16", "int8", "uint8", "bool")),
  *(("torch", name) for name in ("double", "float", "half", "long", "int", "short")),
  *(("torch", name) for name in ("complex64", "complex128")),
  # A numpy scalar is its function, its dtype, and its bytes, which old protocols spell as text.
  ("numpy", "dtype"),
  ("numpy.core.multiarray", "scalar"),
  ("numpy._core.multiarray", "scalar"),
  ("_codecs", "encode"),
)


class Storage(NamedTuple):
  """What a pickle says of the memory of some tensors.

  Attributes:
    dtype: of its elements.
    key: its name in the file.
    size: elements.
    view: (first element, elements) of the part that is meant; None for all of it.
  """

  dtype: np.dtype
  key: str
  size: int
  view: tuple[int, int] | None


def unpickle(
  file: IO[bytes], source: Path, storage: Callable[[Storage], np.ndarray] | None = None
) -> Any:
  """The next pickled object of a file.

  Args:
    file: where to read; it is left after the object.
    source: the file that error messages name.
    storage: what gives the elements of a storage, as a flat array; None where no tensors are.

  Returns:
    The object. Tensors are read-only arrays over their storages; values of other classes are
    stand-ins that hold nothing.

  Raises:
    ConfigError: for a pickle that names anything but what PyTorch needs for tensors.
    Exception: of many kinds, for a damaged pickle.
  """
  _check_memo(file)
  return _Unpickler(file, source, storage).load()


def _check_memo(file: IO[bytes]) -> None:
  """Raises for an object kept under a number so large that the table of them fills all memory."""
  start = file.tell()
  for opcode, argument, position in pickletools.genops(file):
    # Those that Python writes count from 0: less than the bytes that say so.
    if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > (position or 0):
      raise pickle.UnpicklingError(f"its memo goes to {argument} within {position} bytes")
  file.seek(start)


class _Inert:
  """Stands for a value that weights do not need; takes and drops whatever it is made of."""

  def __init__(self, *args: Any, **kwargs: Any) -> None:
    pass

  def __setstate__(self, state: Any) -> None:
    pass


class _Function:
  """A function that a pickle may call, but not change: pickles can set attributes."""

  __slots__ = ("_function",)

  def __init__(self, function: Callable[..., Any]) -> None:
    self._function = function

  def __call__(self, *args: Any) -> Any:
    return self._function(*args)

  def __setstate__(self, state: Any) -> None:
    raise pickle.UnpicklingError("it sets attributes of a function")


class _StorageKind:
  """The class of a storage, which says what dtype its elements have."""

  __slots__ = ("dtype",)

  def __init__(self, dtype: str) -> None:
    self.dtype = jnp.dtype(dtype)

  def __setstate__(self, state: Any) -> None:
    raise pickle.UnpicklingError("it sets attributes of a storage class")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> np.ndarray:
  """A view of a storage, all of it inside; `rest` is about gradients."""
  if not isinstance(storage, np.ndarray) or len(size) != len(stride):
    raise pickle.UnpicklingError("a tensor without a storage, or with a stride too many or too few")
  numbers = (offset, *size, *stride)
  if not all(type(number) is int and number >= 0 for number in numbers):
    raise pickle.UnpicklingError(f"a tensor of offset, size and stride {numbers}")
  last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
  if 0 not in size and last >= storage.size:
    raise pickle.UnpicklingError(
      f"a tensor reaches element {last} of a storage of {storage.size} elements"
    )
  # An empty tensor may start anywhere: it reads nothing.
  elements = storage[:0] if 0 in size else storage[offset:]
  strides = [step * storage.itemsize for step in stride]
  return as_strided(elements, size, strides, writeable=False)


def _parameter(data: Any, *rest: Any) -> Any:
  return data


_ADMITTED: Mapping[tuple[str, str], Any] = MappingProxyType(
  {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): _Function(tuple),
    ("torch._utils", "_rebuild_tensor"): _Function(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
  }
  | {
    (module, name): _StorageKind(dtype)
    for name, dtype in _STORAGES.items()
    for module in ("torch", "torch.cuda")
  }
  | dict.fromkeys(_INERT, _Inert)
)


class _Unpickler(pickle.Unpickler):
  def __init__(
    self, file: IO[bytes], source: Path, storage: Callable[[Storage], np.ndarray] | None
  ) -> None:
    super().__init__(file, encoding="latin1")  # Python 2 wrote strings as bytes
    self._source = source
    self._storage = storage

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _ADMITTED:
      raise ConfigError(
        f"{self._source}: refused: its pickle names {module}.{name}, which tensors do not need, "
        "and which could run any code; nothing of it was run. Save the model's state_dict() alone, "
        "or as safetensors, where the file can be trusted"
      )
    return _ADMITTED[module, name]

  def persistent_load(self, pid: Any) -> Any:
    if self._storage is None:
      raise pickle.UnpicklingError("a storage where none can be")
    kind, storage_kind, key, _, size, *views = pid
    if kind != "storage" or not isinstance(storage_kind, _StorageKind) or not isinstance(key, str):
      raise pickle.UnpicklingError("a reference to something other than a storage")
    if type(size) is not int or size < 0:
      raise pickle.UnpicklingError(f"a storage of size {size!r}")
    view = None
    if views and views[0] is not None:
      _, first, count = views[0]
      if not (type(first) is type(count) is int and 0 <= first <= first + count <= size):
        raise pickle.UnpicklingError(f"a part {views[0]} of a storage of {size} elements")
      view = (first, count)
    return self._storage(Storage(storage_kind.dtype, key, size, view))
