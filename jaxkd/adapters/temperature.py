"""Adapter that learns a temperature, one for all examples or one for each."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxkd.losses._numerics import log_probabilities, widen
from jaxkd.types import Batch, Output

Scope = Literal["global", "instance"]

# The initial theta: T is least + 0.73 * spread.
_INITIAL = 1.0


class LearnedTemperature(nn.Module):
  """An adapter whose student side is (student, T), with T = least + spread * sigmoid(theta).

  "global": theta is one parameter, 1 at first, so that T is 15.6 with the published range. T has
  the shape (1,). "instance": theta is a perceptron of one hidden layer on the probabilities of
  both networks, which take no gradient; its last layer is 0 with a bias of 1 at first, so that all
  examples start at the temperature of "global". T has the logits' leading axes.

  T lies between `least` and least + spread whatever theta is.

  Attributes:
    kind: "global" or "instance".
    least: > 0, the smallest temperature.
    spread: > 0, the largest is least + spread.
    width: hidden units of "instance".

  Parameters: "theta" (1,); or "hidden" and "out" {"kernel", "bias"}.

  Source: Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI 2023: Global_T of the
  authors' code. Of the instance-wise form the paper says that a two-layer perceptron takes the
  predictions of both networks; no code of it is published, so its sizes and initial values are
  this project's.
  """

  kind: Scope = "global"
  least: float = 1.0
  spread: float = 20.0
  width: int = 32

  @nn.compact
  def __call__(
    self, inputs: tuple[Output, Any, Batch], train: bool
  ) -> tuple[tuple[Output, jax.Array], Any]:
    """Map (student, teacher, batch) to ((student, T), teacher)."""
    student, teacher, _ = inputs
    if self.kind == "global":
      theta = self.param("theta", nn.initializers.constant(_INITIAL), (1,))
    else:
      both = widen(jnp.asarray(student.logits), jnp.asarray(teacher.logits))
      x = jnp.concatenate([jnp.exp(log_probabilities(lax.stop_gradient(z))) for z in both], -1)
      x = nn.relu(nn.Dense(self.width, name="hidden")(x))
      flat, start = nn.initializers.zeros_init(), nn.initializers.constant(_INITIAL)
      theta = nn.Dense(1, kernel_init=flat, bias_init=start, name="out")(x)[..., 0]
    return (student, self.least + self.spread * nn.sigmoid(theta)), teacher
