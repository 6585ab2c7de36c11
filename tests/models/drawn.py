"""Random variables from numpy, which saves compiling a module's `init`."""

from __future__ import annotations

import functools

import jax
import numpy as np

# For tests that compare bits: unoptimised code may compute a value twice with different rounding.
optimized_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})


def drawn(module, *inputs, seed=0, **arguments):
  """Random variables of a module, with He kernels and batch statistics that are not trivial."""
  shapes = jax.eval_shape(
    lambda *inputs: module.init(jax.random.key(0), *inputs, **arguments), *inputs
  )
  rng = np.random.default_rng(seed)

  def draw(path, like):
    if like.ndim > 1:
      value = rng.normal(0, np.sqrt(2 / np.prod(like.shape[:-1])), like.shape)
    elif path[-1].key in ("scale", "var"):
      value = rng.uniform(0.5, 1.5, like.shape)
    else:
      value = rng.normal(0, 0.1, like.shape)
    return value.astype(like.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)
