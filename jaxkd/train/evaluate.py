"""Scoring a scheme's predictors on a whole split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxkd.data.pipeline import evaluation_batches
from jaxkd.runtime import mapping
from jaxkd.train.phase import Stage
from jaxkd.train.step import Metrics
from jaxkd.types import Batch, Participants

Scores = dict[str, dict[str, float]]


def make_evaluator(
  stage: Stage, devices: Sequence[jax.Device]
) -> Callable[[Participants, Any], Scores]:
  """(participants, examples) -> {predictor: {metric: mean}}, compiled once for every split."""
  scores, predictors = stage.evaluation_step(), list[str]()

  def nameless(participants: Participants, batch: Batch) -> list[Metrics]:
    found = scores(participants, batch)
    predictors[:] = found
    return list(found.values())

  # Without a backward pass, more examples fit in the memory of a step and fewer steps start.
  size = -(-4 * stage.batch_size // len(devices)) * len(devices)
  # What equal networks are called would make their programs differ to jax's cache.
  step = mapping.map_evaluation_step(nameless, devices)

  def evaluate(participants: Participants, examples: Any) -> Scores:
    participants = mapping.replicate(participants, devices)
    in_flight = mapping.StepsInFlight()
    results = []
    # Every process feeds the whole split to its own devices. Sums over all devices then count an
    # example once per process, above and below the fraction alike.
    for batch in evaluation_batches(examples, batch_size=size):
      results += in_flight.push(step(participants, mapping.shard(batch, devices)))
    results += in_flight.drain()
    return {name: _means([r[i] for r in results]) for i, name in enumerate(predictors)}

  return evaluate


def _means(results: list[dict[str, Any]]) -> dict[str, float]:
  means = {}
  for metric in results[0]:
    total = sum(float(result[metric][0]) for result in results)
    count = sum(float(result[metric][1]) for result in results)
    means[metric] = total / count
  return means
