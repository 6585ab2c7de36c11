"""The state that a phase starts from; agreement of its examples with its networks, by shapes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxkd.data.pipeline import evaluation_batches, training_batches
from jaxkd.errors import ConfigError, one_line
from jaxkd.runtime.mapping import AXIS_NAME
from jaxkd.tables import shapes_of
from jaxkd.train.phase import Phase
from jaxkd.train.state import FirstState
from jaxkd.types import Batch, Participants


def first_state(phase: Phase) -> FirstState:
  """Return the state that the phase starts from, without a value yet.

  Raises:
    ConfigError: as FirstState.
  """
  return FirstState(
    phase.scheme,
    phase.optimizer,
    example_batch(phase),
    given=phase.given,
    untrained=phase.untrained,
    average=phase.average_decay is not None,
  )


def example_batch(phase: Phase) -> Batch:
  """Return zeros in the shapes that the networks see, for initialisation."""
  batch = next(training_batches(phase.examples, batch_size=2, seed=0))
  batch = dataclasses.replace(batch, tables=shapes_of(phase.tables, (2,)))
  shapes = jax.eval_shape(phase.prepare_evaluation, batch)
  return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def check_examples(
  phase: Phase, participants: Participants, validation: Any = None, test: Any = None
) -> None:
  """Check from shapes that the networks of a phase can take its examples; nothing is computed.

  Args:
    phase: the phase, with its training examples.
    participants: shapes of its participants.
    validation: examples that are scored, or None.
    test: likewise.

  Raises:
    ConfigError: naming the phase, the split and both shapes, if labels or mask do not have the axes
      of the logits; for inputs that the networks or the preparation of batches cannot take.
  """
  splits = {"validation": validation, "test": test} if phase.reported else {}
  if phase.epochs or phase.expected is not None:
    splits = {"training": phase.examples, **splits}
  for split, examples in splits.items():
    if examples is None or len(examples) == 0:
      continue
    batch = next(evaluation_batches(examples, batch_size=2))
    where = f"phase {phase.name!r}: {split} examples"
    if split == "training" and phase.epochs:
      _check_preparation(where, phase, batch)
    try:
      seen = jax.eval_shape(phase.prepare_evaluation, batch)
      logits = jax.eval_shape(
        lambda everyone, seen: phase.scheme.predict(everyone, seen.inputs), participants, seen
      )
    except ConfigError:
      raise
    except Exception as error:  # the networks' own code can raise any type
      raise ConfigError(f"{where} do not fit the networks: {one_line(error)}") from error
    for predictor, found in logits.items():
      _check_labels(f"{where}: the logits of {predictor!r}", found, batch)


def _check_preparation(where: str, phase: Phase, batch: Batch) -> None:
  """Trace the preparation of training batches, as a mapped step does."""
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), batch)
  shapes = dataclasses.replace(shapes, epochs=shapes.indices)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (1, 2)))
  try:
    jax.eval_shape(jax.vmap(phase.prepare_training, axis_name=AXIS_NAME), keys, shapes)
  except ConfigError:
    raise
  except Exception as error:  # a preparation of the user's own can raise any type
    raise ConfigError(f"{where} cannot be prepared for training: {one_line(error)}") from error


def _check_labels(where: str, logits: Any, batch: Batch) -> None:
  if logits is None:
    raise ConfigError(f"{where} are missing: its Output has none")
  leading, labels = logits.shape[:-1], batch.labels.shape
  if labels not in (leading, logits.shape):
    raise ConfigError(
      f"{where} of 2 examples are {logits.shape} and the labels {labels}: expected labels {leading}"
    )
  mask = batch.mask
  if mask is not None and mask.shape != leading[: mask.ndim]:
    raise ConfigError(
      f"{where} of 2 examples are {logits.shape} and the mask {mask.shape}: expected the first of "
      f"the axes {leading}"
    )
