"""A loss behind a small network, `Case`, and functions that make one of a loss on Outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd import losses
from jaxkd.types import Output
from tests.rows._subject import total

INNER, BOTH = ("stage2",), ("stage1", "stage2")


class Case(NamedTuple):
  """A loss of a student's Output, a teacher's Output and labels.

  Attributes:
    loss: (student, teacher, labels) -> scalar.
    of_logits: the gradient grows with the scale of the logits, and so does its rounding error.
  """

  loss: Callable[[Output, Output, Any], Any]
  of_logits: bool = False


def exits(output):
  """Make three exits from one Output."""
  logits, pooled = output.logits, output.features["pooled"]
  return [
    Output(logits, {"hint": pooled}),
    Output(2.0 * logits[:, ::-1], {"hint": pooled[:, ::-1]}),
    Output(0.5 * logits, {"hint": 0.3 * pooled}),
  ]


def of(loss, **options):
  return Case(lambda s, t, y: loss(s, t, **options).total)


def of_logits(loss, **options):
  return Case(lambda s, t, y: loss(s, t, **options).total, of_logits=True)


def of_classes(loss, **options):
  """Make a case of a loss of logits and class numbers, which may return a mapping of Terms."""
  return Case(lambda s, t, y: total(loss(s, t, y, **options)), of_logits=True)


def of_exits(loss, **options):
  return Case(lambda s, t, y: loss(exits(s), **options).total, of_logits=True)


def of_multi_hot(**options):
  """Make a case whose labels name a class and the second one after it."""

  def loss(s, t, y):
    labels = jax.nn.one_hot(y, 5) + jax.nn.one_hot((y + 2) % 5, 5)
    return losses.sigmoid_cross_entropy(s.logits, labels, **options)

  return Case(loss, of_logits=True)


def of_tokens(loss, **options):
  """Make a case of the first stage as 36 tokens, of which each example has another number."""

  def tokens(output):
    x = output.features["stage1"]
    return Output(features={"tokens": x.reshape(x.shape[0], 36, -1)})

  def of_tokens(s, t, y):
    where = np.arange(36) < 5 + 7 * np.arange(len(y))[:, None] % 31
    return loss(tokens(s), tokens(t), stages=("tokens",), where=where, **options).total

  return Case(of_tokens)
