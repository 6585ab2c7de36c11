"""Metrics of a phase's steps, and the policy for steps that are not finite.

The device finds and undoes such a step (`jaxkd.train.step_guard`); this file reads the flags on
the host and stops the phase, counts the step as skipped, or asks for a rollback.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd.errors import ConfigError
from jaxkd.runtime import mapping
from jaxkd.train.packed_metrics import unpack
from jaxkd.train.phase import Phase
from jaxkd.train.reporting import Reporter, Row
from jaxkd.train.step_guard import GRADIENT, STATISTICS, UPDATE, Learner
from jaxkd.types import Participants

POLICIES = ("stop", "skip", "rollback")


class NonFinite(NamedTuple):
  """Policy for a step that is not finite. Such a step is never applied.

  Attributes:
    policy: "stop" with an error; "skip" the step, which counts in no mean, until a whole epoch
      consists of skipped steps; or "rollback" to the last checkpoint, at a lower learning rate.
    factor: multiplier of the learning rate at each rollback.
    most: number of rollbacks after which the error is raised.
  """

  policy: str = "stop"
  factor: float = 0.5
  most: int = 3


class Diverged(ConfigError):
  """A phase cannot go on because of values that are not finite; one line with place and remedy."""


class Rollback(Exception):
  """Request to restore an earlier checkpoint.

  Attributes:
    step: number of steps before the one that was not finite.
  """

  def __init__(self, message: str, step: int) -> None:
    """Make a request whose message names what was not finite."""
    super().__init__(message)
    self.step = step

  def below(self, progress: Mapping[str, Any]) -> float:
    """Return the step below which a checkpoint may be restored; infinity allows all.

    If training diverges again no later than before, the restored checkpoint was bad, and so are
    those saved since: an older one is needed.
    """
    no_further = self.step <= progress.get("failed_after", -1)
    return progress["back_to"] if no_further else math.inf


def after_rollback(
  reason: Rollback, before: Mapping[str, Any], step: int, nonfinite: NonFinite
) -> dict[str, Any]:
  """Return the entries of the restored progress that a rollback sets.

  Args:
    reason: the request.
    before: progress at the request, whose checkpoint may have been restored before.
    step: step of the restored checkpoint, or 0 for the phase's start.
    nonfinite: the policy.
  """
  return {
    "rollbacks": before.get("rollbacks", 0) + 1,
    "scale": learning_rate_scale(before) * nonfinite.factor,
    "back_to": step,
    "failed_after": reason.step,
  }


def learning_rate_scale(progress: Mapping[str, Any]) -> float:
  """Return the multiplier of the learning rate after the rollbacks so far."""
  return progress.get("scale", 1.0)


def scale_updates(
  optimizer: optax.GradientTransformation, scale: float
) -> optax.GradientTransformation:
  """Return the optimizer with its updates multiplied by `scale`; its state is unchanged."""
  if scale == 1:
    return optimizer

  def update(gradients: Any, state: Any, learning: Any = None) -> tuple[Any, Any]:
    updates, state = optimizer.update(gradients, state, learning)
    return jax.tree.map(lambda x: scale * x, updates), state

  # The same type, which may take other gradients.
  return type(optimizer)(optimizer.init, update)


def check_finite(phase: str, tree: Any) -> None:
  """Raise Diverged, naming the first array on the host that is not finite and is to be saved."""
  for path, leaf in jax.tree.leaves_with_path(tree):
    if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(leaf).all():
      place = jax.tree_util.keystr(path, simple=True, separator="/")
      raise Diverged(
        f"phase {phase!r}: {place} is not finite and not saved. Try a lower learning_rate or a "
        "clip_norm, or other weights if it came with them"
      )


class StepMonitor:
  """Reads the metrics of a phase's steps, in order and late, and applies the policy.

  Its counts are in the loop's saved progress: sums of metrics by (sum, count), the number of
  skipped steps of the running epoch, and the entries of `after_rollback`.
  """

  def __init__(
    self,
    phase: Phase,
    nonfinite: NonFinite,
    progress: dict[str, Any],
    reporter: Reporter,
    *,
    done: int,
    frozen: Participants,
  ) -> None:
    """Read nothing yet.

    Args:
      phase: the phase that is trained.
      nonfinite: the policy.
      progress: the loop's progress, changed in place.
      reporter: receives every step.
      done: number of steps read before.
      frozen: participants that do not learn, checked when a step is not finite.
    """
    self._phase, self._nonfinite, self._progress = phase, nonfinite, progress
    self._reporter, self._read, self._frozen = reporter, done, frozen
    self._in_flight = mapping.StepsInFlight()
    # Sizes of terms and of learners' gradients in the last finite step.
    self._terms: dict[str, float] = {}
    self._gradients: dict[str, float] = {}

  def push(self, results: Any) -> None:
    """Take the results of a dispatch, and read those of an earlier one.

    Raises:
      Diverged: if a step was not finite and the phase is to stop.
      Rollback: if a step was not finite and the phase is to go on from an earlier checkpoint.
    """
    self._note(self._in_flight.push(results))

  def drain(self) -> None:
    """Read all results in flight; raises as `push`."""
    self._note(self._in_flight.drain())

  def end_epoch(self, epoch: int, done: int) -> Row:
    """Return the row of an epoch whose steps are all read, and empty the sums.

    Means are over finite steps. The numbers of skipped steps and of rollbacks are in the row if
    they are not 0.
    """
    sums, self._progress["sums"] = self._progress["sums"], {}
    train = {name: total / count for name, (total, count) in sums.items() if count}
    row: Row = {"stage": self._phase.name, "epoch": epoch, "step": done, "train": train}
    if skipped := self._progress.pop("skipped", 0):
      row["skipped"] = skipped
    if rollbacks := self._progress.get("rollbacks", 0):
      row["rollbacks"] = rollbacks
    return row

  def _note(self, results: list[Any]) -> None:
    for result in results:
      for metrics, learners in unpack(result):
        self._read += 1
        means = {name: _mean(*pair) for name, pair in metrics.items()}
        faults = any(learner.faults for learner in learners.values())
        if faults or not all(np.isfinite(total) for total, _ in metrics.values()):
          self._apply_policy(f"phase {self._phase.name!r}: {self._describe(means, learners)}")
        else:
          self._terms = {name: abs(means[name]) for name in _terms(means)}
          self._gradients = {name: float(x.gradient_norm) for name, x in learners.items()}
          _add(self._progress["sums"], metrics)
        self._reporter.stepped(means, self._phase.batch_size)

  def _describe(self, means: Mapping[str, float], learners: Mapping[str, Learner]) -> str:
    """Name what is not finite, and the largest term and gradient of the last finite step."""
    wrong = ", ".join(self._not_finite(means, learners))
    kinds = {"term": self._terms, "gradient": self._gradients}
    largest = [
      f"{kind} {name}, {sizes[name]:.3g}"
      for kind, sizes in kinds.items()
      for name in sorted(sizes, key=lambda name: -sizes[name])[:1]
      if len(sizes) > 1
    ]
    before = f" (before, the largest were {' and '.join(largest)})" if largest else ""
    return f"step {self._read} of {self._phase.steps} is not finite: {wrong}{before}"

  def _not_finite(
    self, means: Mapping[str, float], learners: Mapping[str, Learner]
  ) -> Iterator[str]:
    """Yield names of what is not finite, causes before effects."""
    yield from self._frozen_not_finite
    terms = [name for name in _terms(means) if not math.isfinite(means[name])]
    for name in sorted(terms, key=lambda name: -self._terms.get(name, 0.0)):
      yield f"the term {name}"
    if not terms:
      norm = "gradient_norm"  # named by learner below
      yield from (name for name, x in means.items() if name != norm and not math.isfinite(x))
    # Statistics are a learner's own; its output may then spoil the gradients of others.
    for bit, part in ((STATISTICS, "statistics"), (GRADIENT, "gradient"), (UPDATE, "update")):
      names = [name for name, learner in learners.items() if int(learner.faults) & bit]
      if names:
        names.sort(key=lambda name: -self._gradients.get(name, 0.0))
        yield f"the {part} of {' and '.join(map(repr, names))}"
        return

  @functools.cached_property
  def _frozen_not_finite(self) -> list[str]:
    """Frozen participants whose weights are not finite; checked once."""
    return [
      f"the weights of {name!r}, which does not learn"
      for name, variables in mapping.host_copy(self._frozen).items()
      if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
    ]

  def _apply_policy(self, message: str) -> None:
    policy, factor, most = self._nonfinite
    if policy == "skip":
      return self._skip(message)
    self._in_flight.drain()  # before other programs start
    if policy == "stop":
      raise Diverged(
        f"{message}; nothing of it was kept. Try a lower learning_rate or a clip_norm, or go on "
        "from the last checkpoint with nonfinite=skip or nonfinite=rollback"
      )
    made = self._progress.get("rollbacks", 0)
    if made == most:
      scale = learning_rate_scale(self._progress)
      raise Diverged(
        f"{message}; it was rolled back {made} times, to {scale:.3g} times the learning rate, and "
        "no more is allowed (rollbacks). Try a lower learning_rate or a clip_norm, or a lower "
        f"rollback_factor than {factor:g}"
      )
    raise Rollback(message, self._read - 1)

  def _skip(self, message: str) -> None:
    skipped = self._progress.get("skipped", 0) + 1
    if skipped == 1 and not any("skipped" in row for row in self._progress["rows"]):
      self._reporter.message(f"{message}; such steps are skipped, and counted in metrics.jsonl")
    self._progress["skipped"] = skipped
    if skipped == self._phase.steps_per_epoch:
      self._in_flight.drain()
      raise Diverged(
        f"{message}, as were all {skipped} of this epoch, which were skipped. Try a lower "
        "learning_rate or a clip_norm, or nonfinite=rollback"
      )


def _terms(means: Mapping[str, float]) -> list[str]:
  return [name for name in means if name.endswith(("_feature", "_logit"))]


def _mean(total: Any, count: Any) -> float:
  return float(total) / float(count) if count else 0.0


def _add(sums: dict[str, list[float]], metrics: Mapping[str, Any]) -> None:
  """Add one step's (sum, count) pairs to the running epoch's."""
  for name, (total, count) in metrics.items():
    before = sums.get(name, [0.0, 0.0])
    sums[name] = [before[0] + float(total), before[1] + float(count)]
