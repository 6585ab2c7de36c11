"""Scores of a scheme's predictors on a whole split."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxkd.data.pipeline import evaluation_batches
from jaxkd.evaluate.multi_label import MEAN_AVERAGE_PRECISION, mean_average_precision
from jaxkd.runtime import mapping
from jaxkd.train.phase import Phase
from jaxkd.train.step import Metrics
from jaxkd.types import Batch, Participants

Scores = dict[str, dict[str, float]]

# What the best epoch is chosen by (`Phase.keep_by`).
KEEP_BY = ACCURACY, NLL, AGREEMENT = "accuracy", "nll", "agreement"


def make_evaluator(
  phase: Phase, devices: Sequence[jax.Device]
) -> Callable[[Participants, Any], Scores]:
  """Return (participants, examples) -> {predictor: {metric: mean}}, compiled once per shape."""
  scores, predictors = phase.evaluation_step(), list[str]()

  def without_names(participants: Participants, batch: Batch) -> list[Metrics]:
    found = scores(participants, batch)
    predictors[:] = found
    return list(found.values())

  # Without a backward pass more examples fit in memory, and fewer steps are started.
  size = -(-4 * phase.batch_size // len(devices)) * len(devices)
  programs: dict[Any, Callable[..., Any]] = {}

  def step(participants: Participants, batch: Batch) -> Any:
    # Splits may differ in the length of their sequences, or in whether they have a mask.
    leaves, structure = jax.tree.flatten(batch)
    shapes = (structure, *((leaf.shape, leaf.dtype) for leaf in leaves))
    if shapes not in programs:
      # Dict keys are part of jax's cache key; a list lets equal networks share a program.
      programs[shapes] = mapping.map_evaluation_step(without_names, devices)
    return programs[shapes](participants, batch)

  def evaluate(participants: Participants, examples: Any) -> Scores:
    participants = mapping.replicate(participants, devices)
    in_flight = mapping.StepsInFlight()
    results = []
    # Every process feeds the whole split to its own devices: sums over all devices count an example
    # once per process, in numerator and denominator alike.
    for batch in evaluation_batches(examples, batch_size=size):
      results += in_flight.push(step(participants, mapping.shard(batch, devices)))
    results += in_flight.drain()
    return {name: _means([r[i] for r in results]) for i, name in enumerate(predictors)}

  return evaluate


def main_metric(scores: Mapping[str, float]) -> str:
  """Return the metric by which networks are compared: mean average precision, else the accuracy.

  >>> main_metric({"accuracy": 0.9, "mean_average_precision": 0.6})
  'mean_average_precision'
  """
  return MEAN_AVERAGE_PRECISION if MEAN_AVERAGE_PRECISION in scores else "accuracy"


def chosen_metric(scores: Mapping[str, float], keep_by: str = ACCURACY) -> str:
  """Return the metric by which the best epoch is chosen.

  Args:
    scores: of a predictor.
    keep_by: one of KEEP_BY. "agreement" is the accuracy where there is no agreement: in phases
      without a teacher.

  >>> chosen_metric({"accuracy": 0.9, "cross_entropy": 0.3}, "nll")
  'cross_entropy'
  """
  metric = {NLL: "cross_entropy", AGREEMENT: AGREEMENT}.get(keep_by, "")
  return metric if metric in scores else main_metric(scores)


def is_better(scores: Mapping[str, float], best: float | None, keep_by: str = ACCURACY) -> bool:
  """Check whether the chosen score is better than the best so far; NaN is not.

  >>> is_better({"accuracy": 0.5}, None), is_better({"accuracy": 0.5}, 0.5)
  (True, False)
  >>> is_better({"accuracy": 0.5, "cross_entropy": 0.2}, 0.3, "nll")
  True
  """
  metric = chosen_metric(scores, keep_by)
  score = scores[metric]
  if math.isnan(score) or best is None:
    return not math.isnan(score)
  return score < best if metric == "cross_entropy" else score > best


def _means(results: list[dict[str, Any]]) -> dict[str, float]:
  means = {}
  for metric in results[0]:
    if metric == MEAN_AVERAGE_PRECISION:  # of the scores of the whole split
      scores, labels, weights = np.concatenate([result[metric] for result in results], axis=1)
      # Without an example of any class there is none; of logits that are NaN it is NaN.
      if (weights * (labels > 0.5)).any():
        means[metric] = mean_average_precision(scores, labels, weights)
      continue
    total = sum(float(result[metric][0]) for result in results)
    count = sum(float(result[metric][1]) for result in results)
    means[metric] = total / count
  return means
