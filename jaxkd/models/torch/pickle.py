"""An unpickler for PyTorch's files that needs no PyTorch and runs no code of the pickle.

A pickle is a program: it names functions and calls them. Here a name is looked up in the fixed list
below, whose entries are harmless, and any other name is refused.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.lib.stride_tricks import as_strided

from jaxkd.errors import ConfigError
from jaxkd.models.torch.extras import is_extra

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


class Storage(NamedTuple):
  """A pickle's description of the memory of one or several tensors.

  Attributes:
    dtype: dtype of the elements.
    key: name of the storage in the file.
    size: number of elements.
    view: (first element, number of elements) of the part that is referred to; None for all of it.
  """

  dtype: np.dtype
  key: str
  size: int
  view: tuple[int, int] | None


def unpickle(
  file: IO[bytes], source: Path, storage: Callable[[Storage], np.ndarray] | None = None
) -> Any:
  """Read the next pickled object of a file.

  Args:
    file: the open file; its position is then after the object.
    source: the path for error messages.
    storage: function from a storage to its elements, a flat array; None if no tensors are expected.

  Returns:
    The object. Tensors are read-only views of their storages; values of other classes are empty
    placeholders.

  Raises:
    ConfigError: for a pickle with a name that PyTorch does not need for tensors.
    Exception: of any class, for a damaged pickle.
  """
  _check_memo(file)
  return _Unpickler(file, source, storage).load()


def _check_memo(file: IO[bytes]) -> None:
  """Check that no memo index is so large that the memo table would fill the memory."""
  start = file.tell()
  for opcode, argument, position in pickletools.genops(file):
    # Python numbers memo entries from 0, so that an index is less than its position in the file.
    if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > (position or 0):
      raise pickle.UnpicklingError(f"its memo has index {argument} within {position} bytes")
  file.seek(start)


class _Placeholder:
  """A placeholder for a value that weights do not need; it ignores arguments, state and items."""

  def __init__(self, *args: Any, **kwargs: Any) -> None:
    pass

  def __setstate__(self, state: Any) -> None:
    pass

  def __setitem__(self, key: Any, value: Any) -> None:
    pass

  def append(self, item: Any) -> None:
    """Ignore an item, as of a list; `extend` and `add` are those of lists and sets."""

  extend = add = append


class _Dict(dict[Any, Any]):
  """A dict that ignores its state: attributes such as _metadata, which could hide its methods."""

  __slots__ = ()

  def __setitem__(self, key: Any, value: Any) -> None:
    if not isinstance(key, np.ndarray):  # an optimizer's state has parameters as keys
      super().__setitem__(key, value)

  def __setstate__(self, state: Any) -> None:
    pass


def _default_dict(factory: Any = None, *items: Any) -> _Dict:
  """A dict for a defaultdict; its factory is not called."""
  return _Dict(*items)


class _Function:
  """A function that a pickle may call but cannot modify: pickles can set attributes."""

  __slots__ = ("_function",)

  def __init__(self, function: Callable[..., Any]) -> None:
    self._function = function

  def __call__(self, *args: Any) -> Any:
    return self._function(*args)

  def __setstate__(self, state: Any) -> None:
    raise pickle.UnpicklingError("it sets attributes of a function")


class _StorageKind:
  """The class of a storage, which determines the dtype of its elements."""

  __slots__ = ("dtype",)

  def __init__(self, dtype: str) -> None:
    self.dtype = jnp.dtype(dtype)

  def __setstate__(self, state: Any) -> None:
    raise pickle.UnpicklingError("it sets attributes of a storage class")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> np.ndarray:
  """A view of a storage, checked to lie inside it; `rest` describes gradients."""
  if not isinstance(storage, np.ndarray) or len(size) != len(stride):
    raise pickle.UnpicklingError(
      "a tensor without a storage, or whose strides and sizes differ in number"
    )
  numbers = (offset, *size, *stride)
  if not all(type(number) is int and number >= 0 for number in numbers):
    raise pickle.UnpicklingError(f"a tensor of offset, size and stride {numbers}")
  last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
  if 0 not in size and last >= storage.size:
    raise pickle.UnpicklingError(
      f"a tensor reaches element {last} of a storage of {storage.size} elements"
    )
  # An empty tensor may have any offset: it reads no element.
  elements = storage[:0] if 0 in size else storage[offset:]
  strides = [step * storage.itemsize for step in stride]
  return as_strided(elements, size, strides, writeable=False)


def _parameter(data: Any, *rest: Any) -> Any:
  return data


def _of_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
  """A tensor that has attributes or a class of its own, which are ignored."""
  if not isinstance(function, _Function):
    raise pickle.UnpicklingError("a tensor that is built by something other than a function")
  return function(*arguments)


_ALLOWED: Mapping[tuple[str, str], Any] = MappingProxyType(
  {
    ("collections", "OrderedDict"): _Dict,
    ("collections", "defaultdict"): _Function(_default_dict),
    ("torch", "Size"): _Function(tuple),
    ("torch._utils", "_rebuild_tensor"): _Function(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(_parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): _Function(_of_type),
  }
  | {
    (module, name): _StorageKind(dtype)
    for name, dtype in _STORAGES.items()
    for module in ("torch", "torch.cuda")
  }
)


class _Unpickler(pickle.Unpickler):
  def __init__(
    self, file: IO[bytes], source: Path, storage: Callable[[Storage], np.ndarray] | None
  ) -> None:
    super().__init__(file, encoding="latin1")  # Python 2 wrote strings as bytes
    self._source = source
    self._storage = storage

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) in _ALLOWED:
      return _ALLOWED[module, name]
    if not is_extra(module, name):
      raise ConfigError(
        f"{self._source}: refused: its pickle names {module}.{name}, which tensors do not need "
        "and which could run any code; no code was run. If you trust the file, save only the "
        "model's state_dict(), or save it as safetensors"
      )
    return _Placeholder

  def persistent_load(self, pid: Any) -> Any:
    if self._storage is None:
      raise pickle.UnpicklingError("an unexpected storage")
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
