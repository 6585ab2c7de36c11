"""The objective of a phase, traced from shapes: errors of what does not fit, and multiply-adds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.data import Examples
from jaxkd.errors import ConfigError
from jaxkd.jaxprs import multiply_adds_of
from jaxkd.networks import select
from jaxkd.runtime.mapping import AXIS_NAME
from jaxkd.shapes import InputShape, batched
from jaxkd.tables import Table, shapes_of
from jaxkd.types import Array, Batch, Context, Scheme


def batch_shapes(
  shape: InputShape, leading: tuple[int, ...], examples: Examples | None = None
) -> Batch:
  """Return the shapes and dtypes of a batch as a scheme sees it, with these leading axes.

  Args:
    shape: (H, W, C) of images, or the pytree of shapes of other inputs.
    leading: (B,), or more axes before it.
    examples: examples whose labels and mask the batch has; None is one label per example.
  """
  positions = () if examples is None else examples.labels.shape[1:]
  mask = None if examples is None else getattr(examples, "mask", None)
  multi = getattr(examples, "multi_label", False)
  number = jax.ShapeDtypeStruct(leading, jnp.int32)
  return Batch(
    inputs=batched(shape, leading),
    labels=jax.ShapeDtypeStruct((*leading, *positions), jnp.float32 if multi else jnp.int32),
    weights=jax.ShapeDtypeStruct((*leading, *positions), jnp.float32),
    indices=number,
    epochs=number,
    mask=None if mask is None else jax.ShapeDtypeStruct((*leading, *mask.shape[1:]), jnp.bool_),
    multi_label=multi,
  )


def multiply_adds(
  scheme: Scheme,
  shape: InputShape,
  examples: Examples | None = None,
  *,
  parts: int = 1,
  tables: Mapping[str, Table] = MappingProxyType({}),
) -> int | None:
  """Count the multiply-adds of one example's targets and loss, forwards.

  Nothing is computed, but the objective is traced: what does not fit raises here, and so does an
  objective that cannot be computed on `parts` of a batch. None if a loop has no known length.

  Args:
    scheme: the scheme.
    shape: as for `batch_shapes`, as is `examples`.
    examples: examples with the labels and mask of the batch.
    parts: number of parts of a device's batch.
    tables: teachers that are tables of logits, by name.
  """
  count = 2
  leading = 1, count  # on one device
  batch = batch_shapes(shape, leading, examples)
  batch = dataclasses.replace(batch, tables=shapes_of(tables, leading))

  def objective(rng: Array, batch: Batch) -> Any:
    everyone = scheme.init(rng, batch)
    learning = select(everyone, scheme.learners)
    targets = scheme.targets(everyone, batch)
    context = Context(rng, jnp.int32(0), AXIS_NAME, parts)
    return scheme.loss(learning, everyone, batch, targets, context)

  mapped = jax.vmap(objective, in_axes=(None, 0), axis_name=AXIS_NAME)
  traced = jax.make_jaxpr(mapped)(jax.random.key(0), batch)
  try:
    return multiply_adds_of(traced.jaxpr) // count
  except ConfigError:  # a loop of unknown length
    return None
