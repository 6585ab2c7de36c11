"""Anytime prediction: accuracy of each exit and the cost to reach it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import ConfigError
from jaxkd.types import Array, Batch

Row = dict[str, Any]


def exit_logits(
  model: Any, variables: Any, batches: Iterable[Batch], prepare: Callable[[Batch], Batch]
) -> tuple[np.ndarray, np.ndarray]:
  """Compute the logits of every exit for a whole split.

  Args:
    model: returns a tuple of Outputs, shallowest exit first.
    variables: its Flax variables.
    batches: batches of one shape, so that there is one compilation; weight 0 marks padding.
    prepare: turns a stored batch into an input of the model; traced with the model.

  Returns:
    (N, M, C) float32 logits and (N,) labels of the examples whose weight is not 0, in order.

  Raises:
    ConfigError: if there are no batches.
  """

  @jax.jit
  def run(variables: Any, batch: Batch) -> Array:
    outputs = model.apply(variables, prepare(batch).inputs, False)
    return jnp.stack([output.logits.astype(jnp.float32) for output in outputs], axis=1)

  logits, labels = [], []
  for batch in batches:
    real = np.asarray(batch.weights) > 0
    logits.append(np.asarray(run(variables, batch))[real])
    labels.append(np.asarray(batch.labels)[real])
  if not logits:
    raise ConfigError("batches: there are none")
  return np.concatenate(logits), np.concatenate(labels)


def anytime_curve(logits: np.ndarray, labels: np.ndarray, costs: Sequence[int]) -> list[Row]:
  """Compute the accuracy of each exit, and of the ensemble of exits up to it.

  The ensemble of exits 0..k predicts by the mean of their probabilities. It costs no more than
  exit k, whose computation includes the earlier ones.

  Args:
    logits: (N, M, C), as `exit_logits` returns.
    labels: (N,) class numbers.
    costs: multiply-adds up to each of the M exits, as `exit_costs` returns.

  Returns:
    For each exit {"exit", "multiply_adds", "accuracy", "ensemble_accuracy"}.

  Raises:
    ConfigError: if the shapes do not fit together.

  Source: Huang et al., Multi-Scale Dense Networks, ICLR 2018 (the setting); Phuong and Lampert,
  Distillation-Based Training for Multi-Exit Architectures, ICCV 2019, whose published code reports
  both accuracies. MSDNet-PyTorch instead searches for the exits to average.

  >>> logits = np.array([[[2.0, 0.0], [0.0, 1.0]]])
  >>> [(row["accuracy"], row["ensemble_accuracy"]) for row in anytime_curve(logits, [0], [1, 2])]
  [(1.0, 1.0), (0.0, 1.0)]
  """
  check_logits("logits", logits, costs)
  labels = np.asarray(labels)
  if labels.shape != logits.shape[:1]:
    raise ConfigError(f"labels: shape {labels.shape}, expected ({len(logits)},) as logits have")
  alone = np.argmax(logits, axis=-1) == labels[:, None]
  together = np.argmax(np.cumsum(_probabilities(logits), axis=1), axis=-1) == labels[:, None]
  return [
    {
      "exit": number,
      "multiply_adds": int(cost),
      "accuracy": float(alone[:, number].mean()),
      "ensemble_accuracy": float(together[:, number].mean()),
    }
    for number, cost in enumerate(costs)
  ]


def anytime_at(costs: Sequence[float], accuracies: Sequence[float], cost: float) -> float:
  """Interpolate the accuracy of anytime prediction at a mean cost between those of its exits.

  If images are assigned at random to the two neighbouring exits so that their mean cost is `cost`,
  the expected accuracy is linear between the exits' accuracies. It is the baseline for budgeted
  prediction at that cost.

  Args:
    costs: cost of leaving at each of the M exits, in rising order.
    accuracies: accuracy of each of the M exits.
    cost: mean cost per image, from costs[0] to costs[-1].

  Raises:
    ConfigError: for a cost out of that range, costs that do not rise, or another number of
      accuracies.

  >>> anytime_at([1, 3], [0.5, 0.75], 2)
  0.625
  """
  values = rising(costs)
  if len(accuracies) != len(values):
    raise ConfigError(f"accuracies: {len(accuracies)}, expected {len(values)}, as many as costs")
  if not values[0] <= cost <= values[-1]:
    raise ConfigError(f"cost={cost:g}: expected {values[0]:g} to {values[-1]:g}, as exits cost")
  return float(np.interp(cost, values, np.asarray(accuracies, np.float64)))


def rising(costs: Sequence[float]) -> np.ndarray:
  """Return the costs as float64; raise a ConfigError if they are empty or do not rise."""
  values = np.asarray(costs, np.float64)
  if values.ndim != 1 or not len(values) or not np.all(np.diff(values) > 0):
    raise ConfigError(f"costs: expected one or more rising numbers, got {list(costs)!r}")
  return values


def check_logits(argument: str, logits: np.ndarray, costs: Sequence[int]) -> None:
  """Raise a ConfigError unless the logits are (N, M, C) with as many exits as costs, and N > 0."""
  shape = np.shape(logits)
  if len(shape) != 3 or shape[1] != len(costs) or shape[0] == 0:
    raise ConfigError(
      f"{argument}: shape {shape}, expected (examples, exits, classes) with {len(costs)} exits, "
      "as many as costs, and at least one example"
    )


def _probabilities(logits: np.ndarray) -> np.ndarray:
  shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
  return shifted / shifted.sum(axis=-1, keepdims=True)
