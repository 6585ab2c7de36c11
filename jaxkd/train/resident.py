"""What a stage's steps read from the device: the examples, and targets computed beforehand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.data.examples import UNLABELLED, ArrayExamples, Examples
from jaxkd.types import Batch, Places


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Resident:
  """Arrays that every device holds from the first step to the last.

  Attributes:
    examples: all N of a stage as one batch, or None where batches bring theirs.
    targets: of all examples and views, (views, N, ...) each, or None where nothing is cached.
  """

  examples: Batch | None = None
  targets: Any = None


def resident_examples(examples: Examples, limit: int) -> Batch | None:
  """All examples as one batch on the host, if they are in memory and within `limit` bytes."""
  if not isinstance(examples, ArrayExamples) or examples.images.nbytes > limit:
    return None
  return Batch(
    images=examples.images,
    labels=examples.labels,
    weights=(examples.labels != UNLABELLED).astype(np.float32),
    indices=examples.indices,
  )


def reading(
  step: Callable[[Any, Batch, Any], Any], views: int
) -> Callable[[Any, Places | tuple[Batch, Any], Resident], Any]:
  """A step that is told what of the resident arrays to work on.

  Args:
    step: (state, batch, stored targets) -> results, per device.
    views: in how many ways targets are stored of an example; 0 is one.

  Returns:
    (state, places or (batch, stored targets or None), resident) -> results.
  """

  def read(state: Any, fed: Places | tuple[Batch, Any], resident: Resident) -> Any:
    if not isinstance(fed, Places):
      return step(state, *fed)
    batch = jax.tree.map(lambda x: jnp.take(x, fed.positions, axis=0), resident.examples)
    batch = dataclasses.replace(batch, epochs=fed.epochs)
    where = (fed.epochs % max(views, 1), fed.positions)
    stored = jax.tree.map(lambda x: x.at[where].get(mode="clip"), resident.targets)
    return step(state, batch, stored)

  return read
