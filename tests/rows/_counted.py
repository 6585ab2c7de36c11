"""A function with a mask, `Case`, and functions that make one of a kernel or a loss."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.losses._checks import KERNELS
from jaxkd.types import Output
from tests.rows._subject import total


class Case(NamedTuple):
  """A kernel or loss as a function of a student's and a teacher's array, and options."""

  name: str
  call: Callable
  student: tuple[int, ...] = (3, 3, 2)
  teacher: tuple[int, ...] = (3, 3, 2)


LOGITS = ((4,), (4,))


def kernel(name, *shapes, **options):
  return Case(name, functools.partial(getattr(losses, name), **options), *shapes)


def of_one(name, *shapes, **options):
  """A case of a function of one side, with its values reduced to a scalar."""

  def call(s, t, **where):
    value = getattr(losses, name)(s, **options, **where)
    return jnp.sum(jnp.square(value))

  return Case(name, call, *shapes)


def of_outputs(name, *shapes, field="features", stages=("x",), **options):
  def call(s, t, **where):
    if field == "logits":
      return getattr(losses, name)(Output(logits=s), Output(logits=t), **options, **where).total
    student, teacher = (Output(**{field: {"x": x, "y": x[..., :1]}}) for x in (s, t))
    return getattr(losses, name)(student, teacher, stages=stages, **options, **where).total

  return Case(name, call, *shapes)


def of_labels(name, **options):
  def call(s, t, **where):
    # Padding has no label.
    labels = jax.lax.stop_gradient(jnp.where(jnp.isfinite(t[:, 0]), jnp.argmax(t, axis=-1), -1))
    if name == "cross_entropy":
      return losses.cross_entropy(s, labels, **options, **where)
    if name == "confidence_weighted_cross_entropy":
      return losses.confidence_weighted_cross_entropy(s, t, labels, **where)
    return getattr(losses, name)(Output(s), Output(t), labels, **options, **where).total

  return Case(name, call, (4,), (4,))


def of_classes(name, **options):
  """A case of a kernel or a loss of logits and class numbers, of which padding has none."""

  def call(s, t, **where):
    labels = jax.lax.stop_gradient(jnp.where(jnp.isfinite(t[:, 0]), jnp.argmax(t, axis=-1), -1))
    if name not in KERNELS:
      return getattr(losses, name)(s, t, labels, **options, **where)
    return total(getattr(losses, name)(Output(s), Output(t), labels, **options, **where))

  return Case(name, call, *LOGITS)


def of_multi_hot():
  def call(s, t, **where):
    labels = jax.lax.stop_gradient(jnp.where(jnp.isfinite(t), t > 0, t))
    return losses.sigmoid_cross_entropy(s, labels, **where)

  return Case("sigmoid_cross_entropy", call, *LOGITS)


def of_permuted(name):
  # With two classes there is one wrong class, so the permutation is trivial.
  def call(s, t, **where):
    key = jax.random.key(0)
    if name == "permuted_soft_target_kl":
      return losses.permuted_soft_target_kl(s, t, key, **where)
    return losses.dark_knowledge_permuted(Output(s), Output(t), key, **where).total

  return Case(name, call, (2,), (2,))


def of_exits(name, **options):
  def call(s, t, **where):
    exits = [Output(z[:, :3], {"hint": z[:, 3:]}) for z in (s, t[:, ::-1], t)]
    return getattr(losses, name)(exits, **options, **where).total

  return Case(name, call, (5,), (5,))


def of_temperature():
  def call(s, t, **where):
    return jnp.sum(losses.adapted_temperature(2.0, t, confidence=0.55, **where)) - 2.0

  return Case("adapted_temperature", call, (3,), (3,))
