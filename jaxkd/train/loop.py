"""Training of one phase, from its start or its newest checkpoint, to its end."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxkd.errors import ConfigError
from jaxkd.networks import frozen
from jaxkd.runtime import mapping, processes
from jaxkd.runtime.signals import Interrupted, Interruption
from jaxkd.train.checkpoints import Checkpoints
from jaxkd.train.early_stopping import check_patience, stopping_line, stops_early
from jaxkd.train.evaluate import Scores, chosen_metric, is_better, make_evaluator
from jaxkd.train.expected import warn_if_worse
from jaxkd.train.input import Dispatch, InputFeed, Resident, gather_batch
from jaxkd.train.nonfinite import (
  NonFinite,
  Rollback,
  StepMonitor,
  after_rollback,
  check_finite,
  learning_rate_scale,
  scale_updates,
)
from jaxkd.train.phase import Phase
from jaxkd.train.reporting import Reporter, Row
from jaxkd.train.start import check_examples, first_state
from jaxkd.train.state import FirstState, TrainState
from jaxkd.types import Participants

# Updates between agreements of several processes, each of which takes a round trip.
_AGREE_EVERY = 20


@dataclasses.dataclass(frozen=True)
class TrainOptions:
  """Options of training that do not belong to a phase.

  Attributes:
    evaluate_every: epochs between validations; the last epoch is always validated.
    checkpoint_seconds: least time between checkpoints; 0 saves after every dispatch.
    steps_per_dispatch: updates of one compiled program (`jaxkd.train.input`); 0 chooses.
    targets: directory of cached targets that devices do not hold.
    nonfinite: policy for steps that are not finite.
  """

  evaluate_every: int = 1
  checkpoint_seconds: float = 60.0
  steps_per_dispatch: int = 0
  targets: pathlib.Path | None = None
  nonfinite: NonFinite = dataclasses.field(default_factory=NonFinite)


class Finished(NamedTuple):
  """The result of a phase.

  Attributes:
    participants: the final variables of all participants, on the host, chosen by `Phase.keep`.
    rows: one per epoch.
    test: the scores on the test split, if one was given and the phase predicts.
  """

  participants: Participants
  rows: list[Row]
  test: Scores


def train_phase(
  phase: Phase,
  *,
  directory: pathlib.Path,
  devices: Sequence[jax.Device],
  reporter: Reporter,
  validation: Any = None,
  test: Any = None,
  options: TrainOptions | None = None,
  stop: Interruption | None = None,
) -> Finished:
  """Train a phase to its end, resuming exactly from the newest checkpoint in `directory`.

  Args:
    phase: what to train.
    directory: directory of the phase's checkpoints.
    devices: devices that share each batch (`jaxkd.runtime.devices.local_devices`).
    reporter: receives every step and epoch.
    validation: examples scored every `options.evaluate_every` epochs and at the end; they choose
      "best".
    test: examples scored once, after the participants are chosen.
    options: None for the defaults.
    stop: when it is set, the phase saves a checkpoint and ends.

  Raises:
    Interrupted: if `stop` was set, once the checkpoint is saved.
    ConfigError: if given variables do not fit, or there are none for a participant that does not
      learn; examples do not fit the networks (`jaxkd.train.start`); no checkpoint present can be
      read, or targets that are to be cached cannot be.
    Diverged: if a step or an array to be saved is not finite.
  """
  evaluate = make_evaluator(phase, devices)
  first = first_state(phase)
  check_examples(phase, first.shapes.participants, validation, test)
  if not phase.epochs:
    return _finish_untrained(phase, first, evaluate, reporter, validation, test)
  check_patience(phase, validation)
  if not phase.reported:
    validation = test = None
  run = PhaseRun(
    phase,
    first,
    directory,
    devices,
    reporter,
    validate=lambda participants: evaluate(participants, validation) if validation else {},
    options=options or TrainOptions(),
    stop=stop or Interruption(),
  )
  with run.checkpoints:
    participants = run.train()
    check_finite(phase.name, participants)
    scores = evaluate(participants, test) if test is not None else {}
    reporter.phase_ended(phase.name)
    return Finished(participants, run.progress["rows"], scores)


class _Steps(NamedTuple):
  """The steps of a phase at one learning rate: their programs, resident arrays and metrics."""

  dispatch: Dispatch
  resident: Resident
  monitor: StepMonitor


class PhaseRun:
  """The training of one phase: start or restore, make updates, save, roll back, finish.

  Attributes:
    state: training state after the updates made so far.
    best: participants with the best validation score so far, on the host; None before a score.
    progress: metric sums of the running epoch, rows of the epochs before, the best score, and the
      entries of rollbacks. A checkpoint holds state, best and progress.
    done: number of updates made so far.
    checkpoints: the phase's checkpoints, to be closed by the caller.
  """

  state: TrainState
  best: Participants | None
  progress: dict[str, Any]
  done: int

  def __init__(
    self,
    phase: Phase,
    first: FirstState,
    directory: pathlib.Path,
    devices: Sequence[jax.Device],
    reporter: Reporter,
    *,
    validate: Callable[[Participants], Scores],
    options: TrainOptions,
    stop: Interruption,
  ) -> None:
    """Check the phase and open its checkpoints; nothing is computed."""
    self._phase, self._devices, self._reporter = phase, devices, reporter
    self._validate, self._options, self._stop = validate, options, stop
    self._first = first
    self._feed = InputFeed(phase, self._first.shapes, devices, directory=options.targets)
    self._first_position = self._feed.iterator.get_state()
    self.checkpoints = Checkpoints(directory)

  def train(self) -> Participants:
    """Make all updates; return the participants that `Phase.keep` chooses, on the host."""
    self._start_or_restore()
    self._reporter.begins_after(self.done)
    self._reporter.phase_started(self._phase.name, self._phase.steps, self.progress["rows"])
    while not self._ended:
      try:
        self._make_updates()
      except Rollback as reason:
        self._roll_back(reason)
    return self._finish()

  def _start_or_restore(self) -> None:
    """Take the newest checkpoint's state, or the first state."""
    restored = self.checkpoints.restore(self._first.shapes, self._feed.iterator)
    if restored is None:
      self.state = self._first.values(jax.random.key(self._phase.seed))
      self.best = None
      self.progress = {"sums": {}, "rows": [], "best_accuracy": None, "best_epoch": None}
    else:
      self.state, self.progress = restored.state, restored.progress
      self.best = restored.best if self.progress["best_accuracy"] is not None else None
    self.done = int(self.state.step)

  def _make_updates(self) -> None:
    """Make all updates from the current state on, at the learning rate that rollbacks left."""
    steps = self._prepare()  # local: its arrays on the devices are freed before a second attempt
    self._saved_at = time.monotonic()
    while not self._ended:
      self._update(steps)

  @property
  def _ended(self) -> bool:
    """Whether all updates are made, or no more are needed (`Phase.patience`)."""
    early = stops_early(self._phase.patience, self.progress["rows"], self.progress["best_epoch"])
    return self.done >= self._phase.steps or early

  def _prepare(self) -> _Steps:
    """Map the step over the devices, and place state and resident inputs there."""
    phase = dataclasses.replace(
      self._phase,
      optimizer=scale_updates(self._phase.optimizer, learning_rate_scale(self.progress)),
    )
    names = frozen(self.state.participants, phase.scheme.learners)
    dispatch = Dispatch(
      gather_batch(phase.monitored_step(self._feed.loss_from_cache), phase.views),
      self._feed,
      self._devices,
      frozen=names,
      together=self._options.steps_per_dispatch,
      steps_per_epoch=phase.steps_per_epoch,
    )
    resident = self._feed.open(self.state, self._reporter)
    self.state = mapping.replicate(self.state, self._devices)
    monitor = StepMonitor(
      phase,
      self._options.nonfinite,
      self.progress,
      self._reporter,
      done=self.done,
      frozen={name: self.state.participants[name] for name in names},
    )
    return _Steps(dispatch, resident, monitor)

  def _update(self, steps: _Steps) -> None:
    """Make the next group of updates; end the epoch, save and stop if these are due."""
    self.state, results, made = steps.dispatch.next(self.state, steps.resident, self.done)
    self.done += made
    self._stop.begin()
    steps.monitor.push(results)

    may_agree = jax.process_count() == 1 or self.done % _AGREE_EVERY < made
    stopping = may_agree and processes.any_process(self._stop.requested)
    at_end = self.done == self._phase.steps
    time_is_up = time.monotonic() - self._saved_at >= self._options.checkpoint_seconds
    saving = stopping or at_end or (may_agree and processes.agree(time_is_up))
    epoch, within = divmod(self.done, self._phase.steps_per_epoch)
    if saving or within == 0:
      steps.monitor.drain()
    if within == 0:
      row = steps.monitor.end_epoch(epoch, self.done)
      self._end_epoch(row, validating=at_end or epoch % self._options.evaluate_every == 0)
    if saving or self._ended:
      self._save()
    if stopping:
      self.checkpoints.wait()
      self._reporter.phase_ended(self._phase.name)
      raise Interrupted(f"{self._phase.name}, after update {self.done} of {self._phase.steps}")

  def _end_epoch(self, row: Row, *, validating: bool) -> None:
    """Report the epoch's means and scores, and keep the participants if they are the best."""
    scores = self._validate(self.state.predicting) if validating else {}
    if scores:
      row["validation"] = scores
      reported = scores[self._phase.reported]
      by = self._phase.keep_by
      # The entry has the name of checkpoints that were written before `keep_by`.
      if is_better(reported, self.progress["best_accuracy"], by):
        best = reported[chosen_metric(reported, by)]
        self.progress |= {"best_accuracy": best, "best_epoch": row["epoch"]}
        self.best = mapping.host_copy(self.state.predicting)
    self.progress["rows"].append(row)
    self._reporter.epoch_ended(row)

  def _save(self) -> None:
    held = mapping.host_copy(self.state)
    check_finite(self._phase.name, held)
    check_finite(self._phase.name, self.best)
    best = self.best or held.predicting
    self.checkpoints.save(self.done, held, best, self.progress, self._feed.iterator)
    self._saved_at = time.monotonic()

  def _roll_back(self, reason: Rollback) -> None:
    """Restore the last checkpoint before `reason.below`, or the start; delete later checkpoints."""
    before, below = self.progress, reason.below(self.progress)
    self.checkpoints.wait()
    while True:
      self._feed.iterator.set_state(self._first_position)
      self._start_or_restore()
      if self.done == 0 or self.done < below:
        break
      self.checkpoints.forget(self.done)
    entries = after_rollback(reason, before, self.done, self._options.nonfinite)
    self.progress |= entries
    self._reporter.message(
      f"{reason}; back to step {self.done}, with {entries['scale']:.3g} times the learning rate "
      f"(rollback {entries['rollbacks']} of at most {self._options.nonfinite.most})"
    )
    self._reporter.begins_after(self.done)
    self._reporter.rolled_back(self._phase.name, self.progress["rows"])

  def _finish(self) -> Participants:
    """Wait for the last checkpoint, and choose the participants."""
    self.checkpoints.wait()
    self._stop.end()
    if processes.any_process(self._stop.requested):
      self._reporter.phase_ended(self._phase.name)
      raise Interrupted(f"{self._phase.name}, after its last update")
    if self.done < self._phase.steps:
      self._reporter.message(stopping_line(self._phase, self.progress))
    keeps_best = self._phase.keep == "best" and self.best
    return mapping.host_copy(self.best if keeps_best else self.state.predicting)


def _finish_untrained(
  phase: Phase,
  first: FirstState,
  evaluate: Callable[[Participants, Any], Scores],
  reporter: Reporter,
  validation: Any,
  test: Any,
) -> Finished:
  """Return the result of a phase of no epochs: its networks as they are given."""
  missing = sorted(first.shapes.participants.keys() - phase.given.keys())
  if missing:
    raise ConfigError(f"phase {phase.name!r} has epochs=0, but nothing is given for {missing[0]!r}")
  reporter.begins_after(0)
  reporter.phase_started(phase.name, 0, [])
  participants = mapping.host_copy(dict(phase.given))
  check_finite(phase.name, participants)
  warn_if_worse(phase, lambda chosen: evaluate(participants, chosen), validation, reporter)
  scores = evaluate(participants, test) if phase.reported and test is not None else {}
  reporter.phase_ended(phase.name)
  return Finished(participants, [], scores)
