"""CTKD, curriculum temperature: the temperature learns to make distillation harder."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxkd.adapters import LearnedTemperature
from jaxkd.errors import ConfigError, unknown_name
from jaxkd.fields import choice, flag, integer, number
from jaxkd.losses import curriculum_temperature
from jaxkd.losses.ctkd import scaled_gradient
from jaxkd.methods._labels import refuse_multi_hot
from jaxkd.methods.base import Method, Setup
from jaxkd.methods.distillation import Distillation, Loss
from jaxkd.types import Array, Batch, Context, Terms

CURRICULA = ("cosine", "linear", "linear_code", "constant")


def curriculum(
  kind: str, *, epochs: float, start: float = 0.0, end: float = -1.0
) -> Callable[[Array], Array]:
  """Return the factor of the temperature's gradient as a function of the epoch, counted from 1.

  It is `start` at epoch 0 and `end` from epoch `epochs` on; a negative factor is a gradient that is
  reversed. With e = min(epoch, epochs) / epochs:
    cosine: end + (start - end) * (1 + cos(pi e)) / 2
    linear: start + (end - start) * e
    linear_code: e' * (end - start), e' = e up to epoch epochs - 1
    constant: end

  Args:
    kind: one of `CURRICULA`.
    epochs: length, > 0.
    start: factor at epoch 0.
    end: factor at the end.

  Raises:
    ConfigError: for an unknown kind, or epochs that are not positive.

  Source: Li et al., AAAI 2023, who use "cosine" from 0 to -1 in 10 epochs (ImageNet: 5). Their
  LinearDecay is "linear_code": it stops one step before the end, and ignores a start that is not 0.

  >>> [round(float(curriculum("linear_code", epochs=10)(e)), 2) for e in (3, 10, 50)]
  [-0.3, -0.9, -0.9]
  """
  if kind not in CURRICULA:
    raise unknown_name("curriculum", kind, CURRICULA)
  if not 0 < epochs < math.inf:
    raise ConfigError(f"epochs is {epochs}: a curriculum takes a finite number greater than 0")

  def factor(epoch: Array) -> Array:
    epoch = jnp.asarray(epoch, jnp.result_type(float))
    if kind == "linear_code":
      return jnp.where(epoch >= epochs, epochs - 1, epoch) * (end - start) / epochs
    share = jnp.minimum(epoch, epochs) / epochs
    if kind == "cosine":
      return end + (start - end) * (1 + jnp.cos(math.pi * share)) / 2
    return jnp.full_like(share, end) if kind == "constant" else start + (end - start) * share

  return factor


def adversarial(factor: Callable[[Array], Array], *, steps_per_epoch: int, **options: Any) -> Loss:
  """Return `losses.curriculum_temperature` of the pair (student, T) that the adapter returns.

  Args:
    factor: epoch, counted from 1 -> factor of the gradient for T.
    steps_per_epoch: updates per epoch.
    **options: standardize, target_eps.
  """

  def loss(learning: Any, teacher: Any, batch: Batch, context: Context) -> Terms:
    refuse_multi_hot("a learned temperature", batch)
    student, temperature = learning
    temperature = scaled_gradient(temperature, factor(context.step // steps_per_epoch + 1))
    return curriculum_temperature(student, teacher, temperature, where=batch.mask, **options)

  return loss


def _temperature(learning: Any, teacher: Any, batch: Batch, context: Context) -> Any:
  """Return the sum and the count of the temperatures of the positions that count."""
  _, temperature = learning
  if batch.mask is None or temperature.shape == (1,):
    return jnp.sum(temperature), jnp.float32(temperature.size)
  counted = jnp.asarray(batch.mask) != 0
  counted = counted.reshape(counted.shape + (1,) * (temperature.ndim - counted.ndim))
  counted = jnp.broadcast_to(counted, temperature.shape)
  return jnp.sum(jnp.where(counted, temperature, 0.0)), jnp.sum(counted, dtype=jnp.float32)


def _distillations(setup: Setup) -> list[Distillation]:
  hyperparameters = setup.hyperparameters
  factor = curriculum(
    hyperparameters.curriculum,
    epochs=hyperparameters.curriculum_epochs,
    start=-hyperparameters.reversal_start,
    end=-hyperparameters.reversal,
  )
  loss = adversarial(
    factor,
    steps_per_epoch=setup.steps_per_epoch,
    standardize=hyperparameters.standardize,
    target_eps=hyperparameters.target_eps,
  )
  adapter = LearnedTemperature(
    hyperparameters.scope, hyperparameters.least_temperature, hyperparameters.temperature_range
  )
  return [
    Distillation(
      setup.named("ctkd"),
      loss,
      setup.share * hyperparameters.weight,
      setup.teacher_name,
      adapter=adapter,
      metrics={"temperature": _temperature},
    )
  ]


METHOD = Method(
  "curriculum temperature: it learns by a reversed gradient (Li et al., 2023)",
  {
    # One temperature for all examples, or one for each from a perceptron on both predictions.
    "scope": choice("global", ("global", "instance")),
    # The temperature lies between the least and the least plus the range, at first at 73% of it.
    "least_temperature": number(1.0, exclusive=True),
    "temperature_range": number(20.0, exclusive=True),
    # Factor on the reversed gradient: from `reversal_start` to `reversal` in the first epochs.
    "curriculum": choice("cosine", CURRICULA),
    "curriculum_epochs": integer(10, minimum=1),
    "reversal_start": number(0.0),
    "reversal": number(1.0),
    # Added to the teacher's probabilities; the published instance-wise form has 1e-7.
    "target_eps": number(0.0),
    # Logits of mean 0 and standard deviation 1 over the classes, on both sides.
    "standardize": flag(False),
    "weight": number(0.9),
  },
  _distillations,
  source="Li et al., Curriculum Temperature for Knowledge Distillation, AAAI 2023",
  label_weight=0.1,
)
