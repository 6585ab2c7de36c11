"""Distances of students' features from their teacher's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxkd import data, evaluate
from jaxkd.train import Phase
from jaxkd.types import Array, Network
from reproduction.results import FASHION, Runs, bundle

_BATCH = 250


@functools.cache
def distances(runs: Runs, run: str, *, fitted: bool = False) -> list[Mapping[str, np.ndarray]]:
  """Return distances between pooled features on the test split, seed by seed.

  Args:
    runs: finished runs.
    run: name of a run with the shared teacher.
    fitted: first map the student's features linearly, by least squares on its training images; for
      a student whose features are not those that the teacher's classifier reads.
  """
  teacher, _ = bundle(runs.teacher)
  theirs = None
  found = []
  for seed in runs.seeds[FASHION]:
    parts, stage = runs.parts(FASHION, run, seed)
    student, _ = runs.bundle(FASHION, run, seed)
    ours = _pooled(student, stage, parts.test)
    # The test images are the same in every seed.
    theirs = _pooled(teacher, stage, parts.test) if theirs is None else theirs
    if fitted:
      seen, aim = (_pooled(one, stage, stage.examples) for one in (student, teacher))
      ours = _with_ones(ours) @ np.linalg.lstsq(_with_ones(seen), aim, rcond=None)[0]
    found.append(evaluate.feature_distances(ours, theirs))
  return found


def _pooled(trained: Network, stage: Phase, examples: data.Examples) -> np.ndarray:
  """Return the pooled features (N, C) of every example."""
  run = _compiled(trained.module)
  parts = []
  for batch in data.evaluation_batches(examples, batch_size=_BATCH):
    prepared = stage.prepare_evaluation(batch)
    found = np.asarray(run(trained.variables, prepared.inputs))
    parts.append(found[np.asarray(batch.weights) > 0])
  return np.concatenate(parts)


@functools.cache
def _compiled(module: Any) -> Callable[[Any, Array], Array]:
  """Return (variables, images) -> pooled features; all seeds share the program."""
  return jax.jit(
    lambda variables, images: module.apply(variables, images, False).features["pooled"]
  )


def _with_ones(features: np.ndarray) -> np.ndarray:
  return np.hstack([features, np.ones((len(features), 1), features.dtype)])
