"""Counts of a batch, for losses that are computed on parts of it or on several devices.

A loss is a mean over the labels, positions or examples that count. If their number differs between
parts of a batch or between devices, the mean of these means is not the mean of the whole batch.
Each mean is therefore scaled by its share: its own count over the mean count of all parts on all
devices.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxkd.errors import ConfigError
from jaxkd.types import Array, Batch, Context, Counts, Terms


def counts(batch: Batch) -> Counts:
  """Count the labels, positions and examples of a batch, or of a part of one."""
  size = batch.indices.shape[0]
  labels, mask = jnp.asarray(batch.labels), batch.mask
  if batch.multi_label:
    return _multi_label_counts(batch, labels)
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


def class_weighted(batch: Batch, class_weights: Sequence[float]) -> Batch:
  """Return a batch whose labels are weighted by their classes, too; unchanged for ().

  Raises:
    ConfigError: if the labels are no class numbers.
  """
  if not class_weights:
    return batch
  labels = jnp.asarray(batch.labels)
  if batch.multi_label:
    raise ConfigError(
      f"class_weights={tuple(class_weights)}: expected () with several labels per example"
    )
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ConfigError(
      f"class_weights={tuple(class_weights)}: expected () with labels that are class probabilities"
    )
  own = jnp.ones(labels.shape[:1]) if batch.weights is None else jnp.asarray(batch.weights)
  of_labels = jnp.asarray(class_weights, jnp.float32)[jnp.clip(labels, 0, len(class_weights) - 1)]
  return dataclasses.replace(batch, weights=_over(own, labels.shape) * of_labels)


def _multi_label_counts(batch: Batch, labels: Array) -> Counts:
  """Count the labels of every class, (B, C); the logits of an example are one position."""
  size = labels.shape[0]
  counted = jnp.ones(size, bool) if batch.mask is None else jnp.asarray(batch.mask) != 0
  counted = jnp.any(counted.reshape(size, -1), axis=1)
  weights = jnp.ones(size) if batch.weights is None else jnp.asarray(batch.weights)
  spread = jnp.broadcast_to(_over(weights.astype(jnp.float32), labels.shape), labels.shape)
  examples = jnp.sum(counted, dtype=jnp.float32)
  return Counts(
    labels=jnp.sum(jnp.where(counted[:, None], spread, 0.0)), positions=examples, examples=examples
  )


def whole_counts(batch: Batch, *, parts: int, axis_name: str | None) -> Counts | None:
  """Return `Context.counts` of a step; None for a single part without a mask.

  Args:
    batch: batch of this device.
    parts: number of parts of it.
    axis_name: the device axis, or None.
  """
  if parts == 1 and batch.mask is None:
    return None
  found = jax.tree.map(lambda count: count / parts, counts(batch))
  return found if axis_name is None else lax.pmean(found, axis_name)


def label_share(batch: Batch, context: Context) -> Array | float:
  """Return the factor for a mean over this part's labels: a sum divided by their weight, or by 1.

  A part whose labels weigh 0 can have a sum: that of smoothed labels with class weights.
  """
  if context.counts is None:
    return 1.0
  own = counts(batch).labels
  return _share(jnp.where(own > 0, own, 1.0), context.counts.labels)


def scaled(terms: Terms, batch: Batch, context: Context) -> Terms:
  """Scale terms that are means over this part's examples (logit terms: positions) by its share."""
  if context.counts is None or batch.mask is None:
    return terms
  own, whole = counts(batch), context.counts
  feature = Terms(feature=terms.feature) * _share(own.examples, whole.examples)
  return feature + Terms(logit=terms.logit) * _share(own.positions, whole.positions)


def refuse_parts(what: str, context: Context, reason: str) -> None:
  """Raise a ConfigError if the loss is computed on parts of the batch, one after the other."""
  if context.parts > 1:
    raise ConfigError(f"accumulate={context.parts}: expected 1 with {what}, {reason}")


def _over(x: Array, shape: tuple[int, ...]) -> Array:
  """Append axes of length 1 to an array of the first axes of a shape."""
  return x.reshape(x.shape + (1,) * (len(shape) - x.ndim))


def _share(own: Array, whole: Array) -> Array:
  return jnp.where(whole > 0, own / jnp.where(whole > 0, whole, 1.0), 0.0)
