"""Label terms of every scheme: the cross-entropy and the accuracy."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp

from jaxkd.counts import class_weighted, label_share
from jaxkd.errors import ConfigError
from jaxkd.evaluate.metrics import score
from jaxkd.evaluate.multi_label import multi_label_score
from jaxkd.losses import cross_entropy, sigmoid_cross_entropy
from jaxkd.types import Array, Batch, Context, Terms


def label_terms(
  logits: Any, batch: Batch, context: Context, *, label_smoothing: float = 0.0
) -> Terms:
  """Return the cross-entropy with the labels of a batch; the sigmoid one for multi-hot labels.

  The mean over the parts of a batch and over the devices equals the value of the whole batch,
  however its labels are distributed over them.

  Args:
    logits: (..., C).
    batch: its labels, weights and mask are used.
    context: context of the step; its class weights weight the labels.
    label_smoothing: probability spread over all classes; 0 takes that of the context.
  """
  in_parts = context.counts is not None
  loss: Any = sigmoid_cross_entropy
  if not batch.multi_label:  # the step refuses class weights with several labels
    weights = jnp.asarray(context.class_weights) if context.class_weights else None
    loss = functools.partial(cross_entropy, class_weights=weights)
  value = loss(
    logits,
    batch.labels,
    batch.weights,
    where=batch.mask,
    label_smoothing=label_smoothing or context.label_smoothing,
    axis_name=None if in_parts else context.axis_name,
  )
  if not in_parts:
    return Terms(logit=value)
  return Terms(logit=label_share(class_weighted(batch, context.class_weights), context) * value)


def accuracy(logits: Any, batch: Batch) -> tuple[Array, Array]:
  """Return (weighted number of correct predictions, sum of weights); of all labels if multi-hot."""
  scored = multi_label_score if batch.multi_label else score
  return scored(logits, batch.labels, batch.weights, where=batch.mask)["accuracy"]


def refuse_multi_hot(what: str, batch: Batch) -> None:
  """Raise a ConfigError for multi-hot labels, for what is defined by exclusive classes.

  Args:
    what: the scheme or term, for the error.
    batch: its `multi_label` is static, so that the error is raised when a step is traced.
  """
  if batch.multi_label:
    raise ConfigError(
      f"batch.multi_label=True: expected labels of one class per example with {what}, whose "
      "probabilities of the classes sum to 1"
    )
