"""The precision losses are computed in: never less than float32."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd.losses.checks import check_arrays


def widen(*arrays: ArrayLike, what: str = "") -> tuple[jax.Array, ...]:
  """The arrays in one dtype, at least float32: bfloat16 is widened, float64 stays.

  Args:
    *arrays: of any shapes.
    what: the kernel's name, for the error.

  Raises:
    ConfigError: for an Output, or None; it names the loss to call, or the array to give.

  >>> [a.dtype.name for a in widen(jnp.ones(2, jnp.bfloat16), jnp.ones(2))]
  ['float32', 'float32']
  """
  check_arrays(what, *arrays)
  found = [jnp.asarray(a) for a in arrays]
  dtype = functools.reduce(jnp.promote_types, (a.dtype for a in found), jnp.dtype("float32"))
  return tuple(a.astype(dtype) for a in found)
