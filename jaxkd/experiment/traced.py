"""The objective of a phase, traced from shapes: errors of what does not fit, and multiply-adds."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.data import Examples
from jaxkd.errors import ConfigError
from jaxkd.jaxprs import multiply_adds_of
from jaxkd.networks import select
from jaxkd.runtime.mapping import AXIS_NAME
from jaxkd.shapes import InputShape, batched
from jaxkd.tables import shapes_of
from jaxkd.train import Phase
from jaxkd.types import Array, Batch, Context

# Examples of a traced batch.
_COUNT = 2


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


def traced_loss(phase: Phase, shape: InputShape) -> Any:
  """Trace the targets and the loss of a phase, of two examples on one device.

  Nothing is computed: what does not fit raises here, and so does an objective that cannot be
  computed on parts of a batch (`Phase.accumulate`).

  Args:
    phase: the phase.
    shape: as for `batch_shapes`.

  Returns:
    The closed jaxpr of a function (rng, step, batch).
  """
  leading, scheme = (1, _COUNT), phase.scheme
  batch = batch_shapes(shape, leading, phase.examples)
  views = dict.fromkeys((*phase.augmentations, *phase.partners), batch.inputs)
  batch = dataclasses.replace(batch, views=views, tables=shapes_of(phase.tables, leading))

  def objective(rng: Array, step: Array, batch: Batch) -> Any:
    everyone = scheme.init(rng, batch)
    learning = select(everyone, scheme.learners)
    targets = scheme.targets(everyone, batch)
    context = Context(rng, step, AXIS_NAME, phase.accumulate)
    return scheme.loss(learning, everyone, batch, targets, context)

  mapped = jax.vmap(objective, in_axes=(None, None, 0), axis_name=AXIS_NAME)
  return jax.make_jaxpr(mapped)(jax.random.key(0), jnp.int32(0), batch)


def multiply_adds(phase: Phase, shape: InputShape) -> int | None:
  """Count the multiply-adds of one example's targets and loss, forwards.

  None if a loop has no known length.

  Args:
    phase: as for `traced_loss`.
    shape: likewise.
  """
  traced = traced_loss(phase, shape)
  try:
    return multiply_adds_of(traced.jaxpr) // _COUNT
  except ConfigError:  # a loop of unknown length
    return None
