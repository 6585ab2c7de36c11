"""Weights that change during training."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._numerics import widen
from jaxkd.types import Array

# Elapsed fraction of the ramp, 0..1 -> fraction of the change from `start` to `end`.
_SHAPES: dict[str, Callable[[Array], Array]] = {
  "linear": lambda share: share,
  "cosine": lambda share: (1 - jnp.cos(math.pi * share)) / 2,
  "exponential": lambda share: jnp.exp(-5 * jnp.square(1 - share)),
}
RAMPS = tuple(_SHAPES)


def ramp(
  kind: str, *, steps: float, start: float = 0.0, end: float = 1.0
) -> Callable[[Array], Array]:
  """Return a weight as a function of the step: `start` to `end` in `steps` steps, then constant.

  start + (end - start) * shape(min(step / steps, 1)), shape being
    linear: x
    cosine: (1 - cos(pi x)) / 2
    exponential: exp(-5 (1 - x)^2), which starts at 0.0067, not at 0.

  It depends on the step alone, which checkpoints hold, so a resumed run continues correctly.

  Args:
    kind: one of `RAMPS`.
    steps: length, > 0; it need not be whole.
    start: weight at step 0 (nearly, for "exponential").
    end: weight from step `steps` on. If it is smaller than `start`, the weight falls.

  Raises:
    ConfigError: if the kind is unknown or `steps` is not positive.

  Source: "exponential" is ONE's (Lan et al., NeurIPS 2018, the authors' code), from Laine & Aila,
  ICLR 2017; FitNets (Romero et al., ICLR 2015) lets the weight of soft targets fall linearly.

  >>> float(ramp("linear", steps=10, start=4.0, end=1.0)(jnp.int32(5)))
  2.5
  """
  if kind not in _SHAPES:
    raise unknown_name("ramp", kind, _SHAPES)
  if not 0 < steps < math.inf:
    raise ConfigError(f"steps is {steps}: a ramp takes a finite number of steps greater than 0")

  def weight(step: Array) -> Array:
    share = jnp.minimum(widen(step)[0] / steps, 1.0)
    return start + (end - start) * _SHAPES[kind](share)

  return weight


def warm_up(
  weight: float, *, epochs: float, steps_per_epoch: int
) -> float | Callable[[Array], Array]:
  """Return a weight that rises by epochs: weight * min(epoch / epochs, 1), epochs counted from 1.

  It is constant within an epoch, and full from the last of `epochs` on. It depends on the step
  alone, so a resumed run continues correctly.

  Args:
    weight: the full weight.
    epochs: length; 1 or less is the constant weight, as is 0.
    steps_per_epoch: updates per epoch.

  Source: mdistiller's DKD and ReviewKD, `min(epoch / warmup, 1)`, with 20 epochs for CIFAR-100.

  >>> rising = warm_up(2.0, epochs=4, steps_per_epoch=10)
  >>> [float(rising(jnp.int32(step))) for step in (0, 9, 10, 39, 99)]
  [0.5, 0.5, 1.0, 2.0, 2.0]
  """
  if epochs <= 1 or not weight:
    return weight

  def rising(step: Array) -> Array:
    epoch = jnp.floor_divide(step, steps_per_epoch) + 1
    return weight * jnp.minimum(widen(epoch)[0] / epochs, 1.0)

  return rising
