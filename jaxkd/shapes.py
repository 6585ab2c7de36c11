"""Shapes of a model's inputs: images by (H, W, C), any other inputs by a pytree of shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import ConfigError

# (H, W, C) of float32 images, or the pytree of `jax.ShapeDtypeStruct`s of one example's inputs.
InputShape = Any


def is_image_shape(shape: InputShape) -> bool:
  """Check whether a shape is (H, W, C), three integers.

  >>> is_image_shape((8, 8, 3)), is_image_shape({"tokens": jax.ShapeDtypeStruct((5,), jnp.int32)})
  (True, False)
  """
  return (
    isinstance(shape, Sequence)
    and len(shape) == 3
    and all(isinstance(size, int | np.integer) for size in shape)
  )


def batched(shape: InputShape, leading: Sequence[Any]) -> Any:
  """Return the shapes and types of inputs with these leading axes, such as (B,).

  Args:
    shape: (H, W, C) of images, which are float32, or a pytree of `jax.ShapeDtypeStruct`s.
    leading: leading axes, integers or symbolic dimensions of `jax.export`.

  >>> batched((8, 8, 1), (2,))
  ShapeDtypeStruct(shape=(2, 8, 8, 1), dtype=float32)
  >>> batched({"tokens": jax.ShapeDtypeStruct((5,), jnp.int32)}, (2,))
  {'tokens': ShapeDtypeStruct(shape=(2, 5), dtype=int32)}
  """
  if is_image_shape(shape):
    return jax.ShapeDtypeStruct((*leading, *shape), jnp.float32)
  return jax.tree.map(lambda one: jax.ShapeDtypeStruct((*leading, *one.shape), one.dtype), shape)


def of_one(inputs: Any) -> Any:
  """Return the pytree of shapes of one example of inputs (B, ...).

  >>> of_one([np.zeros((4, 5), np.int32)])
  [ShapeDtypeStruct(shape=(5,), dtype=int32)]
  """
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), inputs)


def named_leaves(inputs: Any, name: str = "inputs") -> dict[str, Any]:
  """Return the leaves of a pytree by their paths.

  >>> named_leaves({"tokens": 1, "mask": [2]})
  {"inputs['mask'][0]": 2, "inputs['tokens']": 1}
  """
  leaves = jax.tree.leaves_with_path(inputs)
  return {name + jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def shown(shape: InputShape) -> str:
  """Return a shape of inputs in words, for errors.

  >>> shown({"tokens": jax.ShapeDtypeStruct((5,), jnp.int32)}), shown((8, 8, 1))
  ("inputs['tokens'] int32 (5,)", 'images 8x8x1')
  """
  if is_image_shape(shape):
    return f"images {'x'.join(map(str, shape))}"
  return ", ".join(f"{name} {x.dtype} {tuple(x.shape)}" for name, x in named_leaves(shape).items())


# Shapes as JSON, in the description of a bundle.


def described(shape: InputShape) -> Any:
  """Return a pytree of dicts, lists and tuples of shapes as a JSON value.

  Raises:
    ConfigError: for another container, or a key that is no string.

  >>> described([jax.ShapeDtypeStruct((5,), jnp.int32)])
  {'list': [{'shape': [5], 'dtype': 'int32'}]}
  """
  if hasattr(shape, "shape") and hasattr(shape, "dtype"):
    return {"shape": list(shape.shape), "dtype": np.dtype(shape.dtype).name}
  if isinstance(shape, Mapping) and all(isinstance(key, str) for key in shape):
    return {"dict": {key: described(value) for key, value in shape.items()}}
  for kind in (list, tuple):
    if type(shape) is kind:
      return {kind.__name__: [described(value) for value in shape]}
  raise ConfigError(
    f"inputs that are a {type(shape).__name__} cannot be described in a bundle: expected dicts "
    "with names, lists and tuples of arrays"
  )


def from_described(where: str, value: Any) -> Any:
  """Return the pytree of shapes that `described` has written.

  Raises:
    ConfigError: naming `where`, for anything else.

  >>> from_described("a bundle", {"tuple": [{"shape": [5], "dtype": "int32"}]})
  (ShapeDtypeStruct(shape=(5,), dtype=int32),)
  """
  match value:
    case {"shape": list(sizes), "dtype": str(name)} if all(_is_size(size) for size in sizes):
      try:
        return jax.ShapeDtypeStruct(tuple(sizes), jnp.dtype(name))
      except TypeError:
        pass
    case {"dict": dict(items)}:
      return {key: from_described(where, item) for key, item in items.items()}
    case {"list": list(parts)}:
      return [from_described(where, item) for item in parts]
    case {"tuple": list(parts)}:
      return tuple(from_described(where, item) for item in parts)
  raise ConfigError(f"{where}: inputs={value!r}: expected shapes and types, as jaxkd writes them")


def _is_size(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < math.inf
