"""A row of the table of every loss, `Subject`, and functions that make one of a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.types import Output

B = 8


class Subject(NamedTuple):
  """A loss as a function of a student's and a teacher's array, and of a mask `where`."""

  loss: Callable
  student: tuple[int, ...]
  teacher: tuple[int, ...]
  # Its form in a mapped step, if it compares samples of several devices.
  mapped: Callable | None = None
  # True for options of a loss whose default has a row, too: its tests are among the long ones.
  long: bool = False
  # Tolerance below 0 from rounding, relative to the largest input.
  rounding: float = 0.0


def of_logits(loss, **options):
  def apply(s, t, **where):
    return loss(Output(logits=s), Output(logits=t), **options, **where).total

  return apply


def of_classes(loss, **options):
  """A loss of logits and class numbers, which returns Terms or a mapping of Terms."""

  def apply(s, t, **where):
    labels = jax.lax.stop_gradient(jnp.argmax(t[..., ::-1], axis=-1))
    return total(loss(Output(logits=s), Output(logits=t), labels, **options, **where))

  return apply


def total(found):
  """The sum of Terms or of a mapping of Terms."""
  return sum(x.total for x in found.values()) if isinstance(found, Mapping) else found.total


def of_maps(loss, **options):
  def apply(s, t, **where):
    student, teacher = (Output(features={"x": x}) for x in (s, t))
    return loss(student, teacher, stages=["x"], **options, **where).total

  return apply


def of_tokens(loss, **options):
  """A loss of tokens (B, T, D) with a mask of its own, (B, T), in which the first always counts."""

  def apply(s, t):
    tokens = jax.lax.stop_gradient(t[..., -1] > -0.5).at[:, 0].set(True)
    return of_maps(loss, where=tokens, **options)(s, t)

  return apply


def of_gradients(loss, **options):
  def apply(s, t, **where):
    student, teacher = (Output(gradients={"images": x}) for x in (s, t))
    return loss(student, teacher, **options, **where).total

  return apply


def of_flows(**options):
  def layers(x):
    return Output(features={"first": x, "second": x[:, ::2, ::2, :2]})

  def apply(s, t, **where):
    stages = ["first", "second"]
    return losses.flow_of_solution(layers(s), layers(t), stages=stages, **options, **where).total

  return apply


def of_exits(loss, **options):
  """Two student exits and the deepest as teacher, with three classes and hints of two channels."""

  def an_exit(x):
    return Output(x[:, :3], {"hint": x[:, 3:]})

  def apply(s, t, **where):
    return loss([an_exit(s[:, :5]), an_exit(s[:, 5:]), an_exit(t)], **options, **where).total

  return apply


def of_confidence(**options):
  def apply(s, t, **where):
    labels = jax.lax.stop_gradient(jnp.argmax(t[:, ::-1], axis=-1))
    student, teacher = Output(logits=s), Output(logits=t)
    loss = losses.confidence_weighted_by_teacher_max
    return loss(student, teacher, labels, **options, **where).total

  return apply


def of_labels(**options):
  def apply(s, t, **where):
    labels = jax.lax.stop_gradient(jnp.argmax(t, axis=-1))
    return losses.cross_entropy(s, labels, **options, **where)

  return apply
