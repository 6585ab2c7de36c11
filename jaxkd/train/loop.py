"""Training one stage from its start, or from its newest checkpoint, to its end."""

from __future__ import annotations

import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd.data.pipeline import training_batches
from jaxkd.errors import ConfigError
from jaxkd.interruption import Interrupted, Interruption
from jaxkd.participants import frozen
from jaxkd.train import devices as mapping
from jaxkd.train.checkpoints import Checkpoints
from jaxkd.train.dispatch import Dispatch, each_step
from jaxkd.train.evaluator import Scores, make_evaluator
from jaxkd.train.feeding import Feed
from jaxkd.train.reporting import Reporter, Row
from jaxkd.train.resident import reading
from jaxkd.train.stages import Stage
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
  validation: Any = None,
  test: Any = None,
  evaluate_every: int = 1,
  checkpoint_seconds: float = 60.0,
  steps_per_dispatch: int = 0,
  targets: pathlib.Path | None = None,
  stop: Interruption | None = None,
) -> Finished:
  """Trains a stage to its end, resuming exactly from the newest checkpoint in `directory`.

  Args:
    stage: what to train.
    directory: of this stage's checkpoints.
    devices: that share each batch (`jaxkd.train.devices.local_devices`).
    reporter: told of every step and epoch.
    given: participants that start with these variables (`starting_variables`).
    validation: examples scored every `evaluate_every` epochs and at the end; they choose "best".
    test: examples scored once, after everything is chosen.
    evaluate_every: epochs between validations.
    checkpoint_seconds: least time between checkpoints; 0 saves after every dispatch.
    steps_per_dispatch: updates that one program makes (`jaxkd.train.dispatch`); 0 chooses.
    targets: directory of cached targets that devices do not hold.
    stop: asked to stop, the stage saves what it has made and ends.

  Returns:
    Finished.

  Raises:
    Interrupted: once all is saved, if `stop` was asked to stop.
    ConfigError: if given variables do not fit, no checkpoint present can be read, or targets that
      are to be cached cannot be.
  """
  stop = stop or Interruption()
  example = _example_batch(stage)
  first = FirstState(
    stage.scheme,
    stage.optimizer,
    example,
    given=given,
    average=stage.average_decay is not None,
  )
  evaluate = make_evaluator(stage, devices)
  if not stage.reported:
    validation = test = None
  if not stage.epochs:
    return _untrained(stage, first.shapes, given or {}, reporter, evaluate, test)
  feed = Feed(stage, first.shapes, devices, directory=targets)
  checkpoints = Checkpoints(directory)
  try:
    state, best, progress = _start(stage, first, checkpoints, feed)
    reporter.stage_started(stage.name, stage.steps, progress["rows"])
    if int(state.step) < stage.steps:
      state, best = _train(
        stage,
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
      )
      checkpoints.wait()
      stop.release()
      if mapping.anyone(stop.asked):
        reporter.stage_ended(stage.name)
        raise Interrupted(f"{stage.name}, after its last update")
    chosen = best if stage.keep == "best" and best else state.predicting
    participants = mapping.host_copy(chosen)
    scores = evaluate(participants, test) if test is not None else {}
    reporter.stage_ended(stage.name)
    return Finished(participants, progress["rows"], scores)
  finally:
    # Closing waits for the other processes, one of which may be the reason to end.
    if mapping.are_alone() or not isinstance(sys.exception(), Exception):
      checkpoints.close()


def _untrained(
  stage: Stage,
  shapes: TrainState,
  given: Mapping[str, Any],
  reporter: Reporter,
  evaluate: Callable[[Participants, Any], Scores],
  test: Any,
) -> Finished:
  """What a stage of no epochs leaves: networks that came trained, as they came."""
  missing = sorted(shapes.participants.keys() - given.keys())
  if missing:
    raise ConfigError(f"stage {stage.name!r} has epochs=0, but nothing is given for {missing[0]!r}")
  reporter.stage_started(stage.name, 0, [])
  participants = mapping.host_copy(dict(given))
  scores = evaluate(participants, test) if test is not None else {}
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
) -> tuple[TrainState, Participants | None]:
  """The steps from `state` to the end of the stage; returns the last state and the best."""
  dispatch = Dispatch(
    reading(stage.training_step(feed.finish), stage.views),
    feed,
    devices,
    frozen=frozen(state.participants, stage.scheme.learners),
    together=steps_per_dispatch,
    steps_per_epoch=stage.steps_per_epoch,
  )
  resident = feed.open(state, reporter)
  done = int(state.step)
  state = mapping.replicate(state, devices)
  in_flight = mapping.StepsInFlight()
  saved_at = time.monotonic()

  def read(results: list[Any]) -> None:
    for metrics in results:
      for one in each_step(metrics):
        reporter.stepped(_add(progress["sums"], one), stage.batch_size)

  while done < stage.steps:
    state, metrics, made = dispatch.next(state, resident, done)
    done += made
    stop.hold()
    read(in_flight.push(metrics))
    epoch, within = divmod(done, stage.steps_per_epoch)
    stopping = _stop_is_due(done, made, stop)
    time_is_up = time.monotonic() - saved_at >= checkpoint_seconds
    save = stopping or _save_is_due(done, made, stage, time_is_up)
    if within == 0 or save:
      read(in_flight.drain())
    if within == 0:
      row = _end_epoch(stage, epoch, done, progress)
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
      checkpoints.save(done, state, best or state.predicting, progress, feed.iterator)
      saved_at = time.monotonic()
    if stopping:
      checkpoints.wait()
      reporter.stage_ended(stage.name)
      raise Interrupted(f"{stage.name}, after update {done} of {stage.steps}")
  return state, best


def _stop_is_due(done: int, made: int, stop: Interruption) -> bool:
  if jax.process_count() > 1 and done % _AGREE_EVERY >= made:
    return False
  return mapping.anyone(stop.asked)


def _save_is_due(done: int, made: int, stage: Stage, time_is_up: bool) -> bool:
  if done == stage.steps:
    return True
  if jax.process_count() > 1 and done % _AGREE_EVERY >= made:
    return False
  return mapping.agree(time_is_up)


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


def _example_batch(stage: Stage) -> Batch:
  """Zeros in the shapes the networks see; initialisation needs no more."""
  batch = next(training_batches(stage.examples, batch_size=2, seed=0))
  shapes = jax.eval_shape(stage.prepare_evaluation, batch)
  return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def _add(sums: dict[str, list[float]], metrics: Any) -> dict[str, float]:
  """Adds one step's (sum, count) pairs to the running epoch's; returns the step's means."""
  means = {}
  for name, (total, count) in metrics.items():
    total, count = float(total), float(count)
    means[name] = total / count if count else 0.0
    before = sums.get(name, [0.0, 0.0])
    sums[name] = [before[0] + total, before[1] + count]
  return means


def _end_epoch(stage: Stage, epoch: int, done: int, progress: dict[str, Any]) -> Row:
  """The epoch's row of mean training metrics; empties the sums."""
  sums, progress["sums"] = progress["sums"], {}
  train = {name: total / count for name, (total, count) in sums.items() if count}
  return {"stage": stage.name, "epoch": epoch, "step": done, "train": train}
