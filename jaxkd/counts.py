"""How much a batch holds, so that its parts and devices together give what the whole batch gives.

A loss is a mean over what counts of the examples it sees. Where that is another number in every
part of a batch, or on every device, the mean of such means is not the mean of all: each is scaled
by its share first, its own count over the mean count of all parts on all devices.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxkd.errors import ConfigError
from jaxkd.types import Array, Batch, Context, Counts, Terms


def counts(batch: Batch) -> Counts:
  """What a batch holds, or a part of one."""
  size = batch.indices.shape[0]
  labels, mask = jnp.asarray(batch.labels), batch.mask
  leading = labels.shape if jnp.issubdtype(labels.dtype, jnp.integer) else labels.shape[:-1]
  if mask is not None:
    mask = jnp.asarray(mask) != 0
    leading = mask.shape if mask.ndim > len(leading) else leading
  counted = jnp.broadcast_to(jnp.bool_(True) if mask is None else _over(mask, leading), leading)
  weights = jnp.ones(size) if batch.weights is None else jnp.asarray(batch.weights)
  weights = weights.astype(jnp.float32)
  positions = jnp.where(counted, _over(weights, leading), 0.0)
  examples = jnp.any(counted.reshape(size, math.prod(leading[1:])), axis=1)
  return Counts(
    labels=jnp.sum(positions),
    positions=jnp.sum(counted, dtype=jnp.float32),
    examples=jnp.sum(examples, dtype=jnp.float32),
  )


def whole_counts(batch: Batch, *, parts: int, axis_name: str | None) -> Counts | None:
  """`Context.counts` of a step.

  Args:
    batch: of this device.
    parts: into which it is cut.
    axis_name: the device axis, or None.
  """
  if parts == 1 and batch.mask is None:
    return None
  found = jax.tree.map(lambda count: count / parts, counts(batch))
  return found if axis_name is None else lax.pmean(found, axis_name)


def label_share(batch: Batch, context: Context) -> Array | float:
  """What a mean over this part's labels is scaled by."""
  return 1.0 if context.counts is None else _share(counts(batch).labels, context.counts.labels)


def scaled(terms: Terms, batch: Batch, context: Context) -> Terms:
  """Terms that are means over this part's examples (logits: positions), by its share of them."""
  if context.counts is None or batch.mask is None:
    return terms
  own, whole = counts(batch), context.counts
  feature = Terms(feature=terms.feature) * _share(own.examples, whole.examples)
  return feature + Terms(logit=terms.logit) * _share(own.positions, whole.positions)


def refuse_parts(what: str, context: Context, reason: str) -> None:
  """Raises a ConfigError if the loss is computed on parts of the batch, one after the other."""
  if context.parts > 1:
    raise ConfigError(f"accumulate={context.parts}: expected 1 with {what}, {reason}")


def _over(x: Array, shape: tuple[int, ...]) -> Array:
  """An array of the first axes of a shape, with axes of length 1 for the others."""
  return x.reshape(x.shape + (1,) * (len(shape) - x.ndim))


def _share(own: Array, whole: Array) -> Array:
  return jnp.where(whole > 0, own / jnp.where(whole > 0, whole, 1.0), 0.0)
