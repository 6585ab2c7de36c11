"""Phases: successive runs of training, in which later ones inherit participants of earlier ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from jaxkd.errors import ConfigError, check_file_name
from jaxkd.runtime.mapping import AXIS_NAME
from jaxkd.tables import Table
from jaxkd.train.expected import Expected
from jaxkd.train.state import TrainState
from jaxkd.train.step import (
  Metrics,
  Prepare,
  StepOptions,
  evaluation_step,
  monitored_step,
)
from jaxkd.types import Array, Batch, Participants, Scheme


def as_stored(batch: Batch) -> Batch:
  """Return the batch: nothing is prepared."""
  return batch


def train_as_stored(keys: Array, batch: Batch) -> Batch:
  """Return the batch: nothing is prepared or augmented."""
  return batch


@dataclasses.dataclass(frozen=True)
class Phase:
  """One run of training.

  Attributes:
    name: unique among the phases of an experiment.
    scheme: the participants and their losses.
    optimizer: over the learners' parameters.
    epochs: passes over the examples; 0 for networks that come trained.
    examples: training examples (`jaxkd.data`).
    batch_size: examples of one update, over all devices and processes.
    seed: seed of initialisation, order of examples and augmentation.
    prepare_training: normalisation and augmentation of a training batch (`jaxkd.train.step`); by
      default the batch stays as the examples have it.
    prepare_evaluation: normalisation of an evaluation batch, likewise.
    reported: the predictor that is scored, and by which validation chooses the best epoch. "" for
      a phase that leaves no predictor: nothing is scored.
    label: the trained network's name in tables.
    role: "teacher", "baseline" (the student without distillation) or "student" (the distilled
      student); "" for a preparation. Tables that compare phases go by it.
    inherit: participant -> "phase/participant" of an earlier phase, whose final variables it takes.
    given: participant -> variables it starts with, from outside the experiment.
    untrained: participants that do not learn and are drawn at random nevertheless.
    augmentations: names of `Batch.views` that `prepare_training` adds.
    partners: names of `Batch.views` with the inputs of another example of the same class
      (`jaxkd.data.partners`).
    tables: participant -> `jaxkd.tables.Table` with `fed`: each step receives the rows of its
      examples, from the devices or, if they are more than `resident_bytes`, from the host.
    expected: for networks that come trained, their expected accuracy; a lower one is reported
      before others learn from them (`jaxkd.train.expected`). None checks nothing.
    keep: "last" keeps the final participants, "best" those with the best validation score.
    keep_by: the score by which "best" and `patience` choose: "accuracy" (of multi-hot labels, mean
      average precision), "nll", or "agreement" with `reference`, which is the accuracy without one.
    reference: (participants, inputs) -> logits, such as the teacher's: evaluation then also has the
      agreement of every predictor with them. None compares with nothing.
    accumulate: parts into which each batch is cut to save memory.
    average_decay: decay of a moving average of the learners, which then predicts.
    views: number of augmentations of each example, used in turn, one per epoch; 0 draws a new one
      each time.
    cached_targets: whether the part of the losses that depends on frozen participants is computed
      once per example and view (`jaxkd.cache.targets`).
    resident_bytes: size limit of the examples and cached targets that a device holds during the
      whole phase; the rest comes from the host and the disk.
    label_smoothing: share of every label that is spread evenly over the classes.
    class_weights: weight of each class in the cross-entropy of labels; () weights all by 1.
    patience: epochs without a better validation score (`keep_by`) after which the phase ends early;
      0 never does. The learning rates stay those of `epochs`.
    multiply_adds: of one example's targets and loss, forwards; None if they were not counted.
    notes: lines for the reader, shown before training.
  """

  name: str
  scheme: Scheme
  optimizer: optax.GradientTransformation
  epochs: int
  examples: Any
  batch_size: int
  seed: int = dataclasses.field(default=0, kw_only=True)
  prepare_training: Prepare = dataclasses.field(default=train_as_stored, kw_only=True)
  prepare_evaluation: Callable[[Batch], Batch] = dataclasses.field(default=as_stored, kw_only=True)
  reported: str
  label: str = dataclasses.field(default="", kw_only=True)
  role: str = ""
  inherit: Mapping[str, str] = dataclasses.field(default_factory=dict)
  given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  untrained: Sequence[str] = ()
  augmentations: tuple[str, ...] = ()
  partners: tuple[str, ...] = ()
  tables: Mapping[str, Table] = dataclasses.field(default_factory=dict)
  expected: Expected | None = None
  keep: str = "last"
  keep_by: str = "accuracy"
  reference: Callable[[Participants, Any], Array] | None = None
  accumulate: int = 1
  average_decay: float | None = None
  views: int = 0
  cached_targets: bool = False
  resident_bytes: int = 2**30
  label_smoothing: float = 0.0
  class_weights: tuple[float, ...] = ()
  patience: int = 0
  multiply_adds: int | None = None
  notes: tuple[str, ...] = ()

  @property
  def steps_per_epoch(self) -> int:
    """Updates per epoch, rounded up: as many as a loader that keeps its last partial batch."""
    return steps_per_epoch(len(self.examples), self.batch_size)

  @property
  def steps(self) -> int:
    """Updates of the whole phase."""
    return self.epochs * self.steps_per_epoch

  def training_step(self) -> Callable[..., tuple[TrainState, Metrics]]:
    """The phase's update, per device, for `jaxkd.runtime.devices` to map."""
    monitored = self.monitored_step()

    def step(*fed: Any) -> tuple[TrainState, Metrics]:
      state, (metrics, _) = monitored(*fed)
      return state, metrics

    return step

  def monitored_step(
    self, loss_from_cache: Callable[..., Any] | None = None
  ) -> Callable[..., tuple[TrainState, Any]]:
    """The same update, which also returns the learners' faults; targets may be cached."""
    options = StepOptions(
      AXIS_NAME,
      self.accumulate,
      self.average_decay,
      self.views,
      loss_from_cache,
      self.label_smoothing,
      self.class_weights,
    )
    return monitored_step(self.scheme, self.optimizer, self.prepare_training, options)

  def evaluation_step(self) -> Callable[[Participants, Batch], dict[str, Metrics]]:
    """The scores of the phase's predictors, per device, to be mapped likewise."""
    return evaluation_step(
      self.scheme.predict, self.prepare_evaluation, axis_name=AXIS_NAME, reference=self.reference
    )


def steps_per_epoch(examples: int, batch_size: int) -> int:
  """Updates per pass over the examples, rounded up.

  >>> steps_per_epoch(50_000, 64)
  782
  """
  return -(-examples // batch_size)


def check_phases(phases: list[Phase]) -> None:
  """Raise a ConfigError for repeated names, negative weights, or inheritance from a later phase.

  Names of phases and predictors become names of files, and must be valid ones.
  """
  seen: list[str] = []
  for phase in phases:
    check_file_name("phase", phase.name)
    if phase.reported:
      check_file_name(f"predictor of phase {phase.name!r}:", phase.reported)
    if phase.name in seen:
      raise ConfigError(f"two phases are called {phase.name!r}")
    if any(not 0 <= weight < math.inf for weight in phase.class_weights):
      raise ConfigError(
        f"phase {phase.name!r}: class_weights={phase.class_weights!r}: expected finite numbers >= 0"
      )
    for participant, source in phase.inherit.items():
      origin = source.partition("/")[0]
      if origin not in seen:
        raise ConfigError(
          f"phase {phase.name!r} inherits {participant!r} from {source!r}, but the phases before "
          f"it are {seen}"
        )
    seen.append(phase.name)


def starting_variables(phase: Phase, finished: Mapping[str, Participants]) -> dict[str, Any]:
  """Return the variables of participants that `phase` does not draw at random.

  Args:
    phase: the phase that is about to start.
    finished: earlier phases' name -> their final participants.

  Raises:
    ConfigError: if an inherited participant is not in the earlier phase.
  """
  given = dict(phase.given)
  for participant, source in phase.inherit.items():
    origin, _, name = source.partition("/")
    if name not in finished[origin]:
      raise ConfigError(
        f"phase {phase.name!r} inherits {participant!r} from {source!r}, but phase {origin!r} has "
        f"{sorted(finished[origin])}"
      )
    given[participant] = finished[origin][name]
  return given
