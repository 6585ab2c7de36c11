"""The arrays in the bytes of a .safetensors file."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxkd.errors import needed_by

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
