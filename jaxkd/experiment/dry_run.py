"""Dry runs: every program of a config lowered for other hardware, and two updates on noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import needed_by

with needed_by("jaxkd.experiment.dry_run"):
  import ml_collections


from jaxkd.data import Dataset, fake_dataset, training_batches
from jaxkd.experiment import build, config
from jaxkd.experiment.precision import precision
from jaxkd.experiment.traced import batch_shapes
from jaxkd.networks import frozen, select, update
from jaxkd.runtime import mapping
from jaxkd.tables import shapes_of
from jaxkd.train import Phase, starting_variables
from jaxkd.train.fed_tables import FedTables
from jaxkd.train.state import FirstState, TrainState, create_state
from jaxkd.types import Batch, Context, Participants

PLATFORMS = ("tpu", "cuda")
# Passes after which less than a hundredth of the running statistics is their initial value.
_PASSES = 50


class DryRunFailed(Exception):
  """A phase failed a check; the message names it."""


class Lowered(NamedTuple):
  """A lowered step.

  Attributes:
    phase: name of its phase.
    step: "training" or "evaluation".
    platforms: platforms for which it was lowered.
    convolutions: element type -> number of convolutions that compute in it, over all platforms.
    losses: element type -> number of operations of losses and metrics, likewise.
  """

  phase: str
  step: str
  platforms: tuple[str, ...]
  convolutions: Mapping[str, int]
  losses: Mapping[str, int]


class Ran(NamedTuple):
  """The result of a phase that made its updates.

  Attributes:
    phase: its name.
    losses: loss of every update.
    participants: variables of all participants after the last update.
  """

  phase: str
  losses: tuple[float, ...]
  participants: Participants


class Plan(NamedTuple):
  """An experiment whose data are replaced by noise.

  Attributes:
    settings: its config.
    data: noise in the shape of its data set.
    phases: its phases.
  """

  settings: ml_collections.ConfigDict
  data: Dataset
  phases: list[Phase]


def prepare(
  settings: ml_collections.ConfigDict, load_data: Callable[..., Dataset] = fake_dataset
) -> Plan:
  """Return the plan of a config's experiment, without its data set.

  Args:
    settings: from a file in `configs/`.
    load_data: function that returns the replacement of the data set.

  Raises:
    ConfigError: as `jaxkd.experiment.run.run`, except errors that appear when an objective is
      traced.
  """
  config.check_config(settings)
  data = build.dataset(settings, load_data)
  return Plan(settings, data, build.phases(settings, data, traced=False))


def lower(
  plan: Plan,
  *,
  platforms: Sequence[str] = PLATFORMS,
  device_count: int = 8,
  skip: Collection[str] = (),
) -> list[Lowered]:
  """Lower every training and evaluation step, at the config's batch size.

  Args:
    plan: the plan of a config.
    platforms: target platforms; this machine needs none of them.
    device_count: number of devices that share the batch; a divisor of its size.
    skip: names of phases to leave out.

  Returns:
    One Lowered per step: two of each phase, or one if it has no predictor or no epochs.

  Raises:
    DryRunFailed: naming the phase, if a convolution does not compute in `compute_dtype`, or if
      a loss, a metric, the variables or the optimizer's state are not float32.
  """
  settings, data, phases = plan
  expected = {"float32": "f32", "bfloat16": "bf16"}[settings.compute_dtype]
  done = []

  def lowered(phase: Phase, kind: str, step: Callable[[Any, Any], Any], state: Any) -> Lowered:
    batch = _stored(data, settings.batch_size, phase)
    exported = mapping.lower(step, state, batch, devices=device_count, platforms=platforms)
    convolutions, losses, low = precision(exported)
    if set(convolutions) - {expected}:
      raise DryRunFailed(
        f"phase {phase.name!r}: convolutions of its {kind} step compute in {convolutions}, "
        f"expected {expected} with compute_dtype={settings.compute_dtype!r}"
      )
    if set(losses) - {"f32"} or low:
      raise DryRunFailed(
        f"phase {phase.name!r}: losses and metrics of its {kind} step compute in {losses}, and "
        f"{len(low)} results are not float32 ({', '.join(low[:3])}); expected f32 of all"
      )
    return Lowered(phase.name, kind, tuple(exported.platforms), convolutions, losses)

  for phase in phases:
    if phase.name in skip:
      continue
    seen = jax.eval_shape(phase.prepare_evaluation, _stored(data, 2, phase))
    state = FirstState(
      phase.scheme,
      phase.optimizer,
      seen,
      untrained=_frozen(phase, seen),  # only shapes are used
      average=phase.average_decay is not None,
    ).shapes
    if phase.epochs:
      done.append(lowered(phase, "training", phase.training_step(), state))
    if phase.reported:
      done.append(lowered(phase, "evaluation", phase.evaluation_step(), state.predicting))
  return done


def dry_run(
  plan: Plan,
  *,
  batch_size: int = 4,
  steps: int = 2,
  finished: Mapping[str, Participants] | None = None,
) -> list[Ran]:
  """Make a few updates of every phase on noise, on one device.

  Later phases inherit from earlier ones, as in a real run.

  Args:
    plan: the plan of a config; its batch size is not used.
    batch_size: examples of one update, or of each part of it with `accumulate`.
    steps: number of updates of every phase.
    finished: phases to skip, such as a teacher's: name -> final participants.

  Returns:
    One Ran per trained phase, in order.

  Raises:
    DryRunFailed: naming the phase, if a metric or a variable is not finite, or if a learner
      does not change.
  """
  participants = dict(finished or {})
  done: list[Ran] = []
  for phase in plan.phases:
    if phase.name in participants:
      continue
    size = batch_size * phase.accumulate
    batches = training_batches(
      phase.examples, batch_size=size, seed=0, threads=0, partners=phase.partners
    )
    tables = FedTables(phase)
    drawn = [tables.feed(next(batches)) for _ in range(steps)]
    given = starting_variables(phase, participants)
    seen = jax.eval_shape(phase.prepare_evaluation, drawn[0])
    state = create_state(
      phase.scheme,
      phase.optimizer,
      jax.random.key(phase.seed),
      seen,
      given=given,
      # On noise, trained weights are of no use.
      untrained=[name for name in _frozen(phase, seen) if name not in given],
      average=phase.average_decay is not None,
    )
    before = mapping.host_copy(state.participants)
    if not phase.epochs:
      participants[phase.name] = before
      continue
    state, losses = _updated(phase, state, drawn)
    participants[phase.name] = mapping.host_copy(state.participants)
    _check_learners(phase, before, participants[phase.name])
    if len(plan.phases) == 1 or any(_comes_from(phase, s) for s in plan.phases):
      participants[phase.name] = _settled(phase, participants[phase.name], drawn[-1])
    done.append(Ran(phase.name, losses, participants[phase.name]))
  return done


def _frozen(phase: Phase, seen: Batch) -> tuple[str, ...]:
  """Return the participants that do not learn."""
  shapes = jax.eval_shape(phase.scheme.init, jax.random.key(0), seen)
  return frozen(shapes, phase.scheme.learners)


def _stored(data: Dataset, count: int, phase: Phase) -> Batch:
  """Return the shapes of a phase's batch as the data set stores it."""
  batch = batch_shapes(data.input_shape, (count,), data.train)
  stored = batch.inputs
  if data.image_shape is not None:
    stored = stored.update(dtype=jnp.uint8)
  views = dict.fromkeys(phase.partners, stored)
  return dataclasses.replace(
    batch, inputs=stored, views=views, tables=shapes_of(phase.tables, (count,))
  )


def _updated(
  phase: Phase, state: TrainState, batches: Sequence[Batch]
) -> tuple[TrainState, tuple[float, ...]]:
  """Make an update from each batch; return the state and the losses."""
  chosen = jax.local_devices()[:1]
  step = mapping.map_training_step(
    phase.training_step(), chosen, frozen=frozen(state.participants, phase.scheme.learners)
  )
  state = mapping.replicate(state, chosen)
  losses: list[float] = []
  for batch in batches:
    state, metrics = step(state, mapping.shard(batch, chosen))
    totals = {name: float(total) for name, (total, _) in metrics.items()}
    wrong = sorted(name for name, value in totals.items() if not np.isfinite(value))
    if wrong:
      raise DryRunFailed(
        f"phase {phase.name!r}: not finite at update {len(losses) + 1}: {', '.join(wrong)}"
      )
    losses.append(totals["loss"])
  return state, tuple(losses)


def _comes_from(phase: Phase, later: Phase) -> bool:
  return any(source.partition("/")[0] == phase.name for source in later.inherit.values())


def _settled(phase: Phase, participants: Participants, batch: Batch) -> Participants:
  """Return the participants with the running statistics of many more passes.

  After two updates, running statistics are far from the activations', and the signal of a deep
  network in evaluation mode grows without bounds.
  """

  def passed(participants: Participants, batch: Batch) -> Participants:
    batch = phase.prepare_evaluation(batch)
    _, aux = phase.scheme.loss(
      select(participants, phase.scheme.learners),
      participants,
      batch,
      phase.scheme.targets(participants, batch),
      Context(jax.random.key(0), jnp.int32(0), mapping.AXIS_NAME),
    )
    return update(participants, aux.state)

  # An axis of one device, over which statistics are pooled.
  mapped = jax.jit(
    jax.vmap(passed, in_axes=(None, 0), axis_name=mapping.AXIS_NAME),
    compiler_options={"xla_backend_optimization_level": 0},
  )
  one_device = jax.tree.map(lambda x: np.asarray(x)[None], batch)
  for _ in range(_PASSES):
    participants = jax.tree.map(lambda x: x[0], mapped(participants, one_device))
  return mapping.host_copy(participants)


def _check_learners(phase: Phase, before: Participants, after: Participants) -> None:
  for learner in phase.scheme.learners:
    own = select(before, [learner])
    # A learner without parameters, such as an adaptive temperature, changes by other rules.
    if jax.tree.leaves(own) and not _differ(own, select(after, [learner])):
      raise DryRunFailed(f"phase {phase.name!r}: {learner!r} is to learn and did not move")
  if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after)):
    raise DryRunFailed(f"phase {phase.name!r}: variables are not finite after its updates")


def _differ(one: Any, other: Any) -> bool:
  pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  return any(not np.array_equal(a, b) for a, b in pairs)
