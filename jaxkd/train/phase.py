"""Stages: one run of training each, and which participants one hands to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import optax

from jaxkd.errors import ConfigError, check_file_name
from jaxkd.runtime.mapping import AXIS_NAME
from jaxkd.train.expected import Expected
from jaxkd.train.state import TrainState
from jaxkd.train.step import Metrics, Prepare, evaluation_step, training_step
from jaxkd.types import Batch, Participants, Scheme


@dataclasses.dataclass(frozen=True)
class Stage:
  """One run of training.

  Attributes:
    name: unique among the stages of an experiment.
    scheme: who learns from whom.
    optimizer: over the learners' parameters.
    epochs: passes over the examples; 0 for networks that come trained.
    examples: what is trained on (`jaxkd.data`).
    batch_size: examples of one update, over all devices and processes.
    seed: of initialisation, order of examples and augmentation.
    prepare_training: normalisation and augmentation of a training batch (`jaxkd.train.step`).
    prepare_evaluation: normalisation of an evaluation batch.
    reported: the predictor that stands for this stage: validation chooses by it. "" for a stage
      after which nothing predicts yet: nothing is scored then.
    label: what the trained network is called in tables.
    inherit: participant -> "stage/participant" of an earlier stage, whose final variables it takes.
    given: participant -> variables it starts with, from outside the experiment.
    expected: of networks that come trained, how well they are to predict; a run warns before others
      learn from them if they do not (`jaxkd.train.expected`). None is not checked.
    keep: "last" hands on the final participants, "best" those with the best validation accuracy.
    accumulate: parts into which each batch is cut to save memory.
    average_decay: of a moving average of the learners, with which they then predict.
    views: how many ways an example is augmented, epoch after epoch in turn; 0 for ever new ones.
    cached_targets: whether what the losses need of frozen participants is computed but once per
      example and view (`jaxkd.cache.targets`).
    resident_bytes: of the examples and cached targets, how much a device holds from the first step
      to the last; what is more comes from the host and the disk.
    multiply_adds: of one example's targets and loss, forwards; None if they were not counted.
    notes: lines for the reader, shown before training.
  """

  name: str
  scheme: Scheme
  optimizer: optax.GradientTransformation
  epochs: int
  examples: Any
  batch_size: int
  seed: int
  prepare_training: Prepare
  prepare_evaluation: Callable[[Batch], Batch]
  reported: str
  label: str
  inherit: Mapping[str, str] = dataclasses.field(default_factory=dict)
  given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  expected: Expected | None = None
  keep: str = "last"
  accumulate: int = 1
  average_decay: float | None = None
  views: int = 0
  cached_targets: bool = False
  resident_bytes: int = 2**30
  multiply_adds: int | None = None
  notes: tuple[str, ...] = ()

  @property
  def steps_per_epoch(self) -> int:
    """Updates per epoch, rounded up: as many as a loader that keeps its last partial batch."""
    return steps_per_epoch(len(self.examples), self.batch_size)

  @property
  def steps(self) -> int:
    """Updates of the whole stage."""
    return self.epochs * self.steps_per_epoch

  def training_step(
    self, loss_from_cache: Callable[..., Any] | None = None, *, watched: bool = False
  ) -> Callable[..., tuple[TrainState, Any]]:
    """Its update, per device, for `jaxkd.runtime.mapping` to map.

    With `loss_from_cache` targets are read from the cache, see `jaxkd.train.step`.
    With `watched` it tells beside its metrics what was not finite (`jaxkd.train.step`).
    """
    return training_step(
      self.scheme,
      self.optimizer,
      self.prepare_training,
      axis_name=AXIS_NAME,
      accumulate=self.accumulate,
      average_decay=self.average_decay,
      views=self.views,
      loss_from_cache=loss_from_cache,
      watched=watched,
    )

  def evaluation_step(self) -> Callable[[Participants, Batch], dict[str, Metrics]]:
    """The scores of its predictors, per device, likewise."""
    return evaluation_step(self.scheme.predict, self.prepare_evaluation, axis_name=AXIS_NAME)


def steps_per_epoch(examples: int, batch_size: int) -> int:
  """Updates per pass over the examples, rounded up.

  >>> steps_per_epoch(50_000, 64)
  782
  """
  return -(-examples // batch_size)


def check_stages(stages: list[Stage]) -> None:
  """Raises a ConfigError if names repeat, or a stage inherits from one that is not before it.

  Names of stages and of what they report become those of files.
  """
  seen: list[str] = []
  for stage in stages:
    check_file_name("stage", stage.name)
    if stage.reported:
      check_file_name(f"predictor of stage {stage.name!r}:", stage.reported)
    if stage.name in seen:
      raise ConfigError(f"two stages are called {stage.name!r}")
    for participant, source in stage.inherit.items():
      origin = source.partition("/")[0]
      if origin not in seen:
        raise ConfigError(
          f"stage {stage.name!r} inherits {participant!r} from {source!r}, but the stages before "
          f"it are {seen}"
        )
    seen.append(stage.name)


def starting_variables(stage: Stage, finished: Mapping[str, Participants]) -> dict[str, Any]:
  """The participants that `stage` does not draw afresh.

  Args:
    stage: the stage about to start.
    finished: earlier stages' name -> their final participants.

  Raises:
    ConfigError: if an inherited participant is not in the earlier stage.
  """
  given = dict(stage.given)
  for participant, source in stage.inherit.items():
    origin, _, name = source.partition("/")
    if name not in finished[origin]:
      raise ConfigError(
        f"stage {stage.name!r} inherits {participant!r} from {source!r}, but stage {origin!r} has "
        f"{sorted(finished[origin])}"
      )
    given[participant] = finished[origin][name]
  return given
