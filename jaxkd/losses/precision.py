"""The precision losses are computed in: never less than float32."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def widen(*arrays: ArrayLike) -> tuple[jax.Array, ...]:
  """The arrays in one dtype, at least float32: bfloat16 is widened, float64 stays.

  >>> [a.dtype.name for a in widen(jnp.ones(2, jnp.bfloat16), jnp.ones(2))]
  ['float32', 'float32']
  """
  found = [jnp.asarray(a) for a in arrays]
  dtype = functools.reduce(jnp.promote_types, (a.dtype for a in found), jnp.dtype("float32"))
  return tuple(a.astype(dtype) for a in found)
