"""Reading what steps report, and what becomes of a stage whose steps are not finite."""

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
from jaxkd.train.input import each_step
from jaxkd.train.nonfinite import GRADIENT, STATISTICS, UPDATE, Learner
from jaxkd.train.phase import Stage
from jaxkd.train.reporting import Reporter, Row
from jaxkd.types import Participants

POLICIES = ("stop", "skip", "rollback")


class NonFinite(NamedTuple):
  """What becomes of a stage when a step is not finite. No such step is ever applied.

  Attributes:
    policy: "stop" with an error; "skip" such steps, which count in no mean, until a whole epoch
      consists of them; or "rollback" to the last checkpoint, at a lower learning rate.
    factor: by which "rollback" multiplies the rate, each time.
    most: how many times it does before it stops with the error.
  """

  policy: str = "stop"
  factor: float = 0.5
  most: int = 3


class Diverged(ConfigError):
  """A stage that cannot go on, since something is not finite, in one line: where, what, a way."""


class GoBack(Exception):
  """Asks for a rollback.

  Attributes:
    step: how many steps were made before the one that was not finite.
  """

  def __init__(self, told: str, step: int) -> None:
    """With what was not finite, in words."""
    super().__init__(told)
    self.step = step

  def below(self, progress: Mapping[str, Any]) -> float:
    """The step before which a checkpoint must be for the stage to go on from it.

    Where a stage fails once more and came no further than the last time, what it went back to was
    in ruins already, and so is what it saved since.
    """
    no_further = self.step <= progress.get("failed_after", -1)
    return progress["back_to"] if no_further else math.inf


class Watch:
  """Reads the metrics of a stage's steps, in order and late, and acts where they are not finite.

  What it counts is in the loop's saved progress: sums of metrics by (sum, count), how many steps of
  the running epoch were skipped, how often the stage was rolled back, from and to which step, and
  what its learning rate is multiplied by since.
  """

  def __init__(
    self,
    stage: Stage,
    nonfinite: NonFinite,
    progress: dict[str, Any],
    reporter: Reporter,
    *,
    done: int,
    frozen: Participants,
  ) -> None:
    """Reads nothing yet.

    Args:
      stage: whose steps are made.
      nonfinite: what to do.
      progress: the loop's, which this changes.
      reporter: told of every step.
      done: how many steps were read before.
      frozen: the participants that do not learn, looked at when something is not finite.
    """
    self._stage, self._nonfinite, self._progress = stage, nonfinite, progress
    self._reporter, self._read, self._frozen = reporter, done, frozen
    self._in_flight = mapping.StepsInFlight()
    # Sizes of terms and of learners' gradients in the last step that was finite.
    self._terms: dict[str, float] = {}
    self._gradients: dict[str, float] = {}

  def push(self, results: Any) -> None:
    """Takes what a dispatch returned, and reads an earlier one's.

    Raises:
      Diverged: if a step was not finite, and the stage is not to go on.
      GoBack: if it is to go on from its last checkpoint.
    """
    self._note(self._in_flight.push(results))

  def drain(self) -> None:
    """Reads all that is in flight; raises as `push`."""
    self._note(self._in_flight.drain())

  def end_epoch(self, epoch: int, done: int) -> Row:
    """The row of an epoch that is read to its end: means over its finite steps; empties the sums.

    The row tells, where there were any, how many steps were skipped and rollbacks made.
    """
    sums, self._progress["sums"] = self._progress["sums"], {}
    train = {name: total / count for name, (total, count) in sums.items() if count}
    row: Row = {"stage": self._stage.name, "epoch": epoch, "step": done, "train": train}
    if skipped := self._progress.pop("skipped", 0):
      row["skipped"] = skipped
    if rollbacks := self._progress.get("rollbacks", 0):
      row["rollbacks"] = rollbacks
    return row

  def _note(self, results: list[Any]) -> None:
    for result in results:
      for metrics, found in each_step(result):
        self._read += 1
        means = {name: _mean(*pair) for name, pair in metrics.items()}
        faults = any(learner.faults for learner in found.values())
        if faults or not all(np.isfinite(total) for total, _ in metrics.values()):
          self._act(f"stage {self._stage.name!r}: {self._told(means, found)}")
        else:
          self._terms = {name: abs(means[name]) for name in _terms(means)}
          self._gradients = {name: float(x.gradient_norm) for name, x in found.items()}
          _add(self._progress["sums"], metrics)
        self._reporter.stepped(means, self._stage.batch_size)

  def _told(self, means: Mapping[str, float], found: Mapping[str, Learner]) -> str:
    wrong = ", ".join(self._wrong(means, found))
    # Where all is lost at once, the step before says more of what was on its way.
    kinds = {"term": self._terms, "gradient": self._gradients}
    largest = [
      f"{kind} {name}, {sizes[name]:.3g}"
      for kind, sizes in kinds.items()
      for name in sorted(sizes, key=lambda name: -sizes[name])[:1]
      if len(sizes) > 1
    ]
    before = f" (before, the largest were {' and '.join(largest)})" if largest else ""
    return f"step {self._read} of {self._stage.steps} is not finite: {wrong}{before}"

  def _wrong(self, means: Mapping[str, float], found: Mapping[str, Learner]) -> Iterator[str]:
    """What is not finite, in the order in which one leads to the other."""
    yield from self._ruined
    terms = [name for name in _terms(means) if not math.isfinite(means[name])]
    for name in sorted(terms, key=lambda name: -self._terms.get(name, 0.0)):
      yield f"the term {name}"
    if not terms:
      norm = "gradient_norm"  # told by learner
      yield from (name for name, x in means.items() if name != norm and not math.isfinite(x))
    # Statistics are a learner's own; gradients of others may follow from what it says.
    for bit, part in ((STATISTICS, "statistics"), (GRADIENT, "gradient"), (UPDATE, "update")):
      names = [name for name, learner in found.items() if int(learner.faults) & bit]
      if names:
        names.sort(key=lambda name: -self._gradients.get(name, 0.0))
        yield f"the {part} of {' and '.join(map(repr, names))}"
        return

  @functools.cached_property
  def _ruined(self) -> list[str]:
    """Those who do not learn, but came with what is not finite; looked at once."""
    return [
      f"the weights of {name!r}, which does not learn"
      for name, variables in mapping.host_copy(self._frozen).items()
      if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
    ]

  def _act(self, told: str) -> None:
    """What the policy says of a step that is not finite."""
    policy, factor, most = self._nonfinite
    if policy == "skip":
      return self._skip(told)
    self._in_flight.drain()  # before other programs start
    if policy == "stop":
      raise Diverged(
        f"{told}; nothing of it was kept. Try a lower learning_rate or a clip_norm, or go on from "
        "the last checkpoint with nonfinite=skip or nonfinite=rollback"
      )
    made = self._progress.get("rollbacks", 0)
    if made == most:
      raise Diverged(
        f"{told}; it was rolled back {made} times, to {_scale(self._progress):.3g} times the "
        "learning rate, and no more is allowed (rollbacks). Try a lower learning_rate or a "
        f"clip_norm, or a lower rollback_factor than {factor:g}"
      )
    raise GoBack(told, self._read - 1)

  def _skip(self, told: str) -> None:
    skipped = self._progress.get("skipped", 0) + 1
    if skipped == 1 and not any("skipped" in row for row in self._progress["rows"]):
      self._reporter.told(f"{told}; such steps are skipped, and counted in metrics.jsonl")
    self._progress["skipped"] = skipped
    if skipped == self._stage.steps_per_epoch:
      self._in_flight.drain()
      raise Diverged(
        f"{told}, as were all {skipped} of this epoch, which were skipped. Try a lower "
        "learning_rate or a clip_norm, or nonfinite=rollback"
      )


def gone_back(
  reason: GoBack,
  lost: Mapping[str, Any],
  restored: dict[str, Any],
  nonfinite: NonFinite,
  stage: Stage,
  step: int,
  reporter: Reporter,
) -> None:
  """Lowers the rate in the progress that a stage goes on from, and tells so.

  Args:
    reason: why.
    lost: the progress until then. It may have gone back to the same checkpoint before.
    restored: that of the checkpoint, or of the stage's start; changed.
    nonfinite: what to do.
    stage: which.
    step: of the checkpoint.
    reporter: told.
  """
  made, scale = lost.get("rollbacks", 0) + 1, _scale(lost) * nonfinite.factor
  restored |= {"rollbacks": made, "scale": scale, "back_to": step, "failed_after": reason.step}
  reporter.told(
    f"{reason}; back to step {step}, with {scale:.3g} times the learning rate (rollback {made} of "
    f"at most {nonfinite.most})"
  )
  reporter.begins_after(step)
  reporter.went_back(stage.name, restored["rows"])


def at_lower_rate(
  optimizer: optax.GradientTransformation, progress: Mapping[str, Any]
) -> optax.GradientTransformation:
  """The optimizer at the rate that rollbacks left; its state is as before."""
  scale = _scale(progress)
  if scale == 1:
    return optimizer

  def update(gradients: Any, state: Any, learning: Any = None) -> tuple[Any, Any]:
    updates, state = optimizer.update(gradients, state, learning)
    return jax.tree.map(lambda x: scale * x, updates), state

  return optax.GradientTransformation(optimizer.init, update)


def check_finite(stage: str, tree: Any) -> None:
  """Raises Diverged, naming the place, if arrays on the host that are to be kept are not finite."""
  for path, leaf in jax.tree.leaves_with_path(tree):
    if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(leaf).all():
      place = jax.tree_util.keystr(path, simple=True, separator="/")
      raise Diverged(
        f"stage {stage!r}: {place} is not finite and not saved. Try a lower learning_rate or a "
        "clip_norm, or other weights if it came with them"
      )


def _terms(means: Mapping[str, float]) -> list[str]:
  return [name for name in means if name.endswith(("_feature", "_logit"))]


def _scale(progress: Mapping[str, Any]) -> float:
  return progress.get("scale", 1.0)


def _mean(total: Any, count: Any) -> float:
  return float(total) / float(count) if count else 0.0


def _add(sums: dict[str, list[float]], metrics: Mapping[str, Any]) -> None:
  """Adds one step's (sum, count) pairs to the running epoch's."""
  for name, (total, count) in metrics.items():
    before = sums.get(name, [0.0, 0.0])
    sums[name] = [before[0] + float(total), before[1] + float(count)]
