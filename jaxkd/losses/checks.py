"""Checks on what a caller passed, made while tracing: numbers and shapes, never array values."""

from __future__ import annotations

import math
import numbers
from typing import Any

import jax

from jaxkd.errors import ConfigError
from jaxkd.types import Output


def is_number(value: Any) -> bool:
  """Whether `value` is known now: a Python or numpy number, not a (traced) JAX array."""
  return isinstance(value, numbers.Real)


def check_positive(name: str, value: Any) -> None:
  """Raise a ConfigError if `value` is a number that is not finite and greater than 0."""
  if is_number(value) and not 0 < value < math.inf:
    raise ConfigError(f"{name} is {value}: it must be a finite number greater than 0")


def check_fraction(name: str, value: Any) -> None:
  """Raise a ConfigError if `value` is a number outside [0, 1]."""
  if is_number(value) and not 0 <= value <= 1:
    raise ConfigError(f"{name} is {value}: it must lie between 0 and 1")


def check_same_shape(
  what: str, student: jax.Array, teacher: jax.Array, hint: str = "", *, other: str = "teacher"
) -> None:
  """Raise a ConfigError with both shapes if they differ; `other` is what the second is called."""
  if student.shape != teacher.shape:
    message = f"{what}: student {student.shape} and {other} {teacher.shape} differ in shape"
    raise ConfigError(f"{message}; {hint}" if hint else message)


def logits_of(output: Output, *, what: str, who: str) -> jax.Array:
  """The logits of an Output; a ConfigError that names whose are missing."""
  if output.logits is None:
    raise ConfigError(f"{what}: the {who}'s Output has no logits")
  return output.logits


def check_maps(what: str, student: jax.Array, teacher: jax.Array) -> None:
  """Raise a ConfigError unless both are feature maps (B, H, W, C) of one batch."""
  for name, x in (("student", student), ("teacher", teacher)):
    if x.ndim != 4:
      raise ConfigError(f"{what}: {name} {x.shape} is not a feature map (B, H, W, C)")
  if student.shape[0] != teacher.shape[0]:
    raise ConfigError(
      f"{what}: student {student.shape} and teacher {teacher.shape} differ in batch size"
    )
