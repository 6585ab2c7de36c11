"""Training one stage from its start, or from its newest checkpoint, to its end."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd.data.pipeline import training_batches
from jaxkd.errors import ConfigError
from jaxkd.networks import frozen
from jaxkd.runtime import mapping, processes
from jaxkd.runtime.signals import Interrupted, Interruption
from jaxkd.train.checkpoints import Checkpoints
from jaxkd.train.evaluate import Scores, make_evaluator
from jaxkd.train.expected import warn_if_worse
from jaxkd.train.input import Dispatch, Feed, reading
from jaxkd.train.phase import Stage
from jaxkd.train.policy import GoBack, NonFinite, Watch, at_lower_rate, check_finite, gone_back
from jaxkd.train.reporting import Reporter, Row
from jaxkd.train.state import FirstState, TrainState
from jaxkd.types import Batch, Participants

# Agreeing between processes is a round trip, too dear for every step.
_AGREE_EVERY = 20


class Finished(NamedTuple):
  """What a stage leaves.

  Attributes:
    participants: the final variables of everyone, on the host, as `Stage.keep` chooses them.
    rows: one per epoch.
    test: the scores on the test split, if one was given and the stage predicts.
  """

  participants: Participants
  rows: list[Row]
  test: Scores


def train_stage(
  stage: Stage,
  *,
  directory: pathlib.Path,
  devices: Sequence[jax.Device],
  reporter: Reporter,
  given: Mapping[str, Any] | None = None,
  untrained: Sequence[str] = (),
  validation: Any = None,
  test: Any = None,
  evaluate_every: int = 1,
  checkpoint_seconds: float = 60.0,
  steps_per_dispatch: int = 0,
  targets: pathlib.Path | None = None,
  stop: Interruption | None = None,
  nonfinite: NonFinite | None = None,
) -> Finished:
  """Trains a stage to its end, resuming exactly from the newest checkpoint in `directory`.

  Args:
    stage: what to train.
    directory: of this stage's checkpoints.
    devices: that share each batch (`jaxkd.runtime.devices.local_devices`).
    reporter: told of every step and epoch.
    given: participants that start with these variables (`starting_variables`), or `stage.given`.
    untrained: participants that do not learn and are drawn at random all the same.
    validation: examples scored every `evaluate_every` epochs and at the end; they choose "best".
    test: examples scored once, after everything is chosen.
    evaluate_every: epochs between validations.
    checkpoint_seconds: least time between checkpoints; 0 saves after every dispatch.
    steps_per_dispatch: updates that one program makes (`jaxkd.train.input`); 0 chooses.
    targets: directory of cached targets that devices do not hold.
    stop: asked to stop, the stage saves what it has made and ends.
    nonfinite: what to do about steps that are not finite; None stops.

  Returns:
    Finished.

  Raises:
    Interrupted: once all is saved, if `stop` was asked to stop.
    ConfigError: if given variables do not fit, or there are none for a participant that does not
      learn, no checkpoint present can be read, or targets that are to be cached cannot be.
    Diverged: if a step was not finite, or what is to be saved is not.
  """
  stop = stop or Interruption()
  nonfinite = nonfinite or NonFinite()
  given = {**stage.given, **(given or {})}
  first = FirstState(
    stage.scheme,
    stage.optimizer,
    _example_batch(stage),
    given=given,
    untrained=untrained,
    average=stage.average_decay is not None,
  )
  evaluate = make_evaluator(stage, devices)
  if not stage.epochs:
    return _untrained(stage, first.shapes, given, reporter, evaluate, validation, test)
  if not stage.reported:
    validation = test = None
  feed = Feed(stage, first.shapes, devices, directory=targets)
  checkpoints = Checkpoints(directory)
  beginning = feed.iterator.get_state()
  try:
    state, best, progress = _start(stage, first, checkpoints, feed)
    reporter.begins_after(int(state.step))
    reporter.stage_started(stage.name, stage.steps, progress["rows"])
    while int(state.step) < stage.steps:
      try:
        state, best = _train(
          dataclasses.replace(stage, optimizer=at_lower_rate(stage.optimizer, progress)),
          state,
          best,
          progress,
          feed,
          checkpoints,
          devices,
          reporter,
          evaluate=lambda state: evaluate(state.predicting, validation) if validation else {},
          evaluate_every=evaluate_every,
          checkpoint_seconds=checkpoint_seconds,
          steps_per_dispatch=steps_per_dispatch,
          stop=stop,
          nonfinite=nonfinite,
        )
      except GoBack as reason:
        below = reason.below(progress)
        lost = progress
        state, best, progress = _back(stage, first, checkpoints, feed, beginning, below)
        gone_back(reason, lost, progress, nonfinite, stage, int(state.step), reporter)
    checkpoints.wait()
    stop.end()
    if processes.any_process(stop.requested):
      reporter.stage_ended(stage.name)
      raise Interrupted(f"{stage.name}, after its last update")
    chosen = best if stage.keep == "best" and best else state.predicting
    participants = mapping.host_copy(chosen)
    check_finite(stage.name, participants)
    scores = evaluate(participants, test) if test is not None else {}
    reporter.stage_ended(stage.name)
    return Finished(participants, progress["rows"], scores)
  finally:
    # Closing waits for the other processes, one of which may be the reason to end.
    if processes.is_single_process() or not isinstance(sys.exception(), Exception):
      checkpoints.close()


def _untrained(
  stage: Stage,
  shapes: TrainState,
  given: Mapping[str, Any],
  reporter: Reporter,
  evaluate: Callable[[Participants, Any], Scores],
  validation: Any,
  test: Any,
) -> Finished:
  """What a stage of no epochs leaves: networks that came trained, as they came."""
  missing = sorted(shapes.participants.keys() - given.keys())
  if missing:
    raise ConfigError(f"stage {stage.name!r} has epochs=0, but nothing is given for {missing[0]!r}")
  reporter.begins_after(0)
  reporter.stage_started(stage.name, 0, [])
  participants = mapping.host_copy(dict(given))
  check_finite(stage.name, participants)
  warn_if_worse(stage, lambda chosen: evaluate(participants, chosen), validation, reporter)
  scores = evaluate(participants, test) if stage.reported and test is not None else {}
  reporter.stage_ended(stage.name)
  return Finished(participants, [], scores)


def _train(
  stage: Stage,
  state: TrainState,
  best: Participants | None,
  progress: dict[str, Any],
  feed: Feed,
  checkpoints: Checkpoints,
  devices: Sequence[jax.Device],
  reporter: Reporter,
  *,
  evaluate: Callable[[TrainState], Scores],
  evaluate_every: int,
  checkpoint_seconds: float,
  steps_per_dispatch: int,
  stop: Interruption,
  nonfinite: NonFinite,
) -> tuple[TrainState, Participants | None]:
  """The steps from `state` to the end of the stage; returns the last state and the best."""
  bystanders = frozen(state.participants, stage.scheme.learners)
  dispatch = Dispatch(
    reading(stage.training_step(feed.loss_from_cache, watched=True), stage.views),
    feed,
    devices,
    frozen=bystanders,
    together=steps_per_dispatch,
    steps_per_epoch=stage.steps_per_epoch,
  )
  resident = feed.open(state, reporter)
  done = int(state.step)
  state = mapping.replicate(state, devices)
  aside = {name: state.participants[name] for name in bystanders}
  watch = Watch(stage, nonfinite, progress, reporter, done=done, frozen=aside)
  saved_at = time.monotonic()

  while done < stage.steps:
    state, results, made = dispatch.next(state, resident, done)
    done += made
    stop.begin()
    watch.push(results)
    epoch, within = divmod(done, stage.steps_per_epoch)
    stopping = _stop_is_due(done, made, stop)
    time_is_up = time.monotonic() - saved_at >= checkpoint_seconds
    save = stopping or _save_is_due(done, made, stage, time_is_up)
    if within == 0 or save:
      watch.drain()
    if within == 0:
      row = watch.end_epoch(epoch, done)
      due = done == stage.steps or epoch % evaluate_every == 0
      scores = evaluate(state) if due else {}
      if scores:
        row["validation"] = scores
        accuracy = scores[stage.reported]["accuracy"]
        if progress["best_accuracy"] is None or accuracy > progress["best_accuracy"]:
          progress |= {"best_accuracy": accuracy, "best_epoch": epoch}
          best = mapping.host_copy(state.predicting)
      progress["rows"].append(row)
      reporter.epoch_ended(row)
    if save:
      held = mapping.host_copy(state)
      check_finite(stage.name, held)
      check_finite(stage.name, best)
      checkpoints.save(done, held, best or held.predicting, progress, feed.iterator)
      saved_at = time.monotonic()
    if stopping:
      checkpoints.wait()
      reporter.stage_ended(stage.name)
      raise Interrupted(f"{stage.name}, after update {done} of {stage.steps}")
  return state, best


def _stop_is_due(done: int, made: int, stop: Interruption) -> bool:
  if jax.process_count() > 1 and done % _AGREE_EVERY >= made:
    return False
  return processes.any_process(stop.requested)


def _save_is_due(done: int, made: int, stage: Stage, time_is_up: bool) -> bool:
  if done == stage.steps:
    return True
  if jax.process_count() > 1 and done % _AGREE_EVERY >= made:
    return False
  return processes.agree(time_is_up)


def _start(
  stage: Stage, first: FirstState, checkpoints: Checkpoints, feed: Feed
) -> tuple[TrainState, Participants | None, dict[str, Any]]:
  """The newest checkpoint's state, or a fresh one."""
  restored = checkpoints.restore(first.shapes, feed.iterator)
  if restored is None:
    state = first.values(jax.random.key(stage.seed))
    return state, None, {"sums": {}, "rows": [], "best_accuracy": None, "best_epoch": None}
  best = restored.best if restored.progress["best_accuracy"] is not None else None
  return restored.state, best, restored.progress


def _back(
  stage: Stage,
  first: FirstState,
  checkpoints: Checkpoints,
  feed: Feed,
  beginning: dict[str, Any],
  below: float,
) -> tuple[TrainState, Participants | None, dict[str, Any]]:
  """The last checkpoint's state before the step `below`, or a fresh one; later ones are deleted."""
  checkpoints.wait()
  while True:
    feed.iterator.set_state(beginning)
    state, best, progress = _start(stage, first, checkpoints, feed)
    step = int(state.step)
    if step == 0 or step < below:
      return state, best, progress
    checkpoints.forget(step)


def _example_batch(stage: Stage) -> Batch:
  """Zeros in the shapes the networks see; initialisation needs no more."""
  batch = next(training_batches(stage.examples, batch_size=2, seed=0))
  shapes = jax.eval_shape(stage.prepare_evaluation, batch)
  return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
