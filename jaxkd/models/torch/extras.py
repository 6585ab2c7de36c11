"""Names in pickles of checkpoints that weights do not need and that stand for harmless values.

Options, accuracies, paths, times, states of optimizers, schedules and random generators: none of
these names is imported, and a value of such a class becomes an empty placeholder.
"""

from __future__ import annotations

_BUILTINS = (
  *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "long"),
  *("object", "range", "set", "slice", "str", "tuple", "unicode", "xrange"),
)
_DTYPES = (
  *("float64", "float32", "float16", "bfloat16", "double", "float", "half"),
  *("int64", "int32", "int16", "int8", "long", "int", "short", "bool"),
  *("uint64", "uint32", "uint16", "uint8", "quint8", "qint8", "qint32", "quint4x2", "quint2x4"),
  *("complex128", "complex64", "complex32", "cdouble", "cfloat", "chalf"),
  *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
_TENSOR_CLASSES = (("torch", "Tensor"), ("torch.nn.parameter", "Parameter"))
# An array or scalar of numpy is pickled as a function, a class, a dtype, and bytes (as text in old
# protocols). numpy.core is numpy._core since numpy 2.
_NUMPY = (
  *(
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (
      ("multiarray", "_reconstruct"),
      ("multiarray", "scalar"),
      ("numeric", "_frombuffer"),
    )
  ),
  *(
    ("numpy", name)
    for name in (
      *("dtype", "ndarray", "bool", "bool_", "bytes_", "str_", "datetime64", "timedelta64"),
      *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
      *("float16", "float32", "float64", "longdouble", "complex64", "complex128"),
    )
  ),
  ("numpy.ma.core", "_mareconstruct"),
  ("numpy.ma.core", "MaskedArray"),
  ("numpy.ma", "MaskedArray"),
  ("numpy.random._pickle", "__bit_generator_ctor"),
  ("numpy.random._pickle", "__generator_ctor"),
  ("numpy.random._pickle", "__randomstate_ctor"),
  ("numpy.random._mt19937", "MT19937"),
  ("numpy.random._pcg64", "PCG64"),
  ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"),
  ("numpy.random.bit_generator", "SeedSequence"),
  ("_codecs", "encode"),
)
_STANDARD = (
  ("argparse", "Namespace"),
  ("types", "SimpleNamespace"),
  ("collections", "Counter"),
  ("collections", "deque"),
  ("decimal", "Decimal"),
  ("fractions", "Fraction"),
  ("uuid", "UUID"),
  *(("datetime", name) for name in ("date", "datetime", "time", "timedelta", "timezone")),
  # The module is private in Python 3.13.
  *(
    (module, f"{kind}{name}")
    for module in ("pathlib", "pathlib._local")
    for kind in ("", "Pure")
    for name in ("Path", "PosixPath", "WindowsPath")
  ),
)
_TORCH = (
  ("torch", "device"),
  ("torch.serialization", "_get_layout"),
  *(("torch", name) for name in _DTYPES),
  *_TENSOR_CLASSES,
)
_NAMES = frozenset(
  (
    *_NUMPY,
    *_STANDARD,
    *_TORCH,
    *((module, name) for module in ("builtins", "__builtin__") for name in _BUILTINS),
  )
)
# Packages for configurations and training loops, whose objects many checkpoints have as options.
_PACKAGES = (
  *("addict", "easydict", "ml_collections", "omegaconf", "yacs"),
  *("lightning", "lightning_fabric", "pytorch_lightning"),
)
_TRAINING = ("torch.optim", "torch.amp.grad_scaler", "torch.cuda.amp.grad_scaler")


def is_extra(module: str, name: str) -> bool:
  """Say if a pickle's name stands for a value that weights do not need.

  >>> is_extra("pathlib", "PosixPath"), is_extra("os", "system")
  (True, False)
  """
  # A name with dots leads into attributes, such as a function of another module.
  if "." in name:
    return False
  return (
    (module, name) in _NAMES
    or module.partition(".")[0] in _PACKAGES
    or any(module == part or module.startswith(f"{part}.") for part in _TRAINING)
  )
