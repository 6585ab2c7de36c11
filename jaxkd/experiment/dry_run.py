"""A dry run: every program of a config compiled for other hardware, and two updates on noise."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxkd.errors import needed_by

with needed_by("jaxkd.experiment.dry_run"):
  import ml_collections


from jaxkd import recipes
from jaxkd.data import Dataset, stand_in, training_batches
from jaxkd.experiment import build
from jaxkd.networks import frozen, select, update
from jaxkd.runtime import mapping
from jaxkd.train import Stage, starting_variables
from jaxkd.train.state import FirstState, TrainState, create_state
from jaxkd.types import Batch, Context, Participants

_CONVOLUTION = re.compile(r"stablehlo\.convolution\(.* -> tensor<(?:\d+x)*([a-z]\w*)>")
_SCORES = re.compile(
  r"stablehlo\.(?:exponential|exponential_minus_one|log|log_plus_one)\b"
  r".* : tensor<(?:\d+x){0,2}([a-z]\w*)>"
)
_SUM = re.compile(r"stablehlo\.reduce\(.* -> tensor<([a-z]\w*)>")
_RAISED = re.compile(r"stablehlo\.convert .* : \(tensor<(bf16|f16)>\) -> tensor<f32>")


class Precision(NamedTuple):
  """The element types of a step.

  Attributes:
    convolutions: element type -> how many convolutions compute in it, all platforms' counted.
    losses: element type -> how many operations of losses and metrics do.
    low_results: paths of floating-point results that are not float32.
  """

  convolutions: Mapping[str, int]
  losses: Mapping[str, int]
  low_results: tuple[str, ...]


def precision(step: export.Exported) -> Precision:
  """What an exported step computes in."""
  text = step.mlir_module()
  losses: collections.Counter[str] = collections.Counter()
  for pattern in (_SCORES, _SUM, _RAISED):
    losses.update(kind for kind in pattern.findall(text) if "f" in kind)  # no integers
  results = jax.tree.unflatten(step.out_tree, step.out_avals)
  return Precision(
    convolutions=dict(collections.Counter(_CONVOLUTION.findall(text))),
    losses=dict(losses),
    low_results=tuple(
      jax.tree_util.keystr(path)
      for path, leaf in jax.tree.leaves_with_path(results)
      if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype != jnp.float32
    ),
  )


PLATFORMS = ("tpu", "cuda")
# After so many, less than a hundredth of the running statistics is what they began with.
_PASSES = 50


class RehearsalFailed(Exception):
  """A stage that did not do what it must; the message names it."""


class Lowered(NamedTuple):
  """A step that was lowered.

  Attributes:
    stage: its name.
    step: "training" or "evaluation".
    platforms: for which.
    convolutions: element type -> how many of them compute in it, all platforms' counted.
    losses: element type -> how many operations of losses and metrics do.
  """

  stage: str
  step: str
  platforms: tuple[str, ...]
  convolutions: Mapping[str, int]
  losses: Mapping[str, int]


class Ran(NamedTuple):
  """A stage that made its updates.

  Attributes:
    stage: its name.
    losses: of every update.
    participants: everyone's variables after the last.
  """

  stage: str
  losses: tuple[float, ...]
  participants: Participants


class Rehearsal(NamedTuple):
  """A planned experiment on a stand-in for its data.

  Attributes:
    settings: its config.
    data: noise in the shape of its data set.
    stages: what it would train.
  """

  settings: ml_collections.ConfigDict
  data: Dataset
  stages: list[Stage]


def prepare(
  settings: ml_collections.ConfigDict, load_data: Callable[..., Dataset] = stand_in
) -> Rehearsal:
  """Plans the experiment of a config without its data set.

  Args:
    settings: from a file in `configs/`.
    load_data: what takes the place of the data set.

  Raises:
    ConfigError: as `jaxkd.experiment.run.run`, but for what only shows when an objective is traced.
  """
  recipes.check_config(settings)
  data = build.dataset(settings, load_data)
  return Rehearsal(settings, data, build.stages(settings, data, traced=False))


def lower(
  rehearsal: Rehearsal,
  *,
  platforms: Sequence[str] = PLATFORMS,
  device_count: int = 8,
  skip: Collection[str] = (),
) -> list[Lowered]:
  """Lowers every training and evaluation step, at the config's own batch size.

  Args:
    rehearsal: of a config.
    platforms: for which; none of them is needed here.
    device_count: how many devices share the batch, which they must divide.
    skip: names of stages to leave out.

  Returns:
    One Lowered for each step that there is to map: two a stage, or one where nothing predicts yet
    or nothing is trained.

  Raises:
    RehearsalFailed: naming the stage, if a convolution does not compute in `compute_dtype`, or if
      a loss, a metric, the variables or the optimizer's state are not float32.
  """
  settings, data, stages = rehearsal
  batch = _stored(data, settings.batch_size)
  expected = {"float32": "f32", "bfloat16": "bf16"}[settings.compute_dtype]
  done = []

  def lowered(stage: Stage, kind: str, step: Callable[[Any, Any], Any], state: Any) -> Lowered:
    exported = mapping.lower(step, state, batch, devices=device_count, platforms=platforms)
    convolutions, losses, low = precision(exported)
    if set(convolutions) - {expected}:
      raise RehearsalFailed(
        f"stage {stage.name!r}: convolutions of its {kind} step compute in {convolutions}, "
        f"expected {expected} with compute_dtype={settings.compute_dtype!r}"
      )
    if set(losses) - {"f32"} or low:
      raise RehearsalFailed(
        f"stage {stage.name!r}: losses and metrics of its {kind} step compute in {losses}, and "
        f"{len(low)} results are not float32 ({', '.join(low[:3])}); expected f32 of all"
      )
    return Lowered(stage.name, kind, tuple(exported.platforms), convolutions, losses)

  for stage in stages:
    if stage.name in skip:
      continue
    seen = jax.eval_shape(stage.prepare_evaluation, _stored(data, 2))
    state = FirstState(
      stage.scheme,
      stage.optimizer,
      seen,
      untrained=_frozen(stage, seen),  # Their shapes are all that counts.
      average=stage.average_decay is not None,
    ).shapes
    if stage.epochs:
      done.append(lowered(stage, "training", stage.training_step(), state))
    if stage.reported:
      done.append(lowered(stage, "evaluation", stage.evaluation_step(), state.predicting))
  return done


def dry_run(
  rehearsal: Rehearsal,
  *,
  batch_size: int = 4,
  steps: int = 2,
  finished: Mapping[str, Participants] | None = None,
) -> list[Ran]:
  """Makes a few updates of every stage on noise, on one device.

  Later stages start from what earlier ones leave, as in a real run.

  Args:
    rehearsal: of a config, whose batch size is set aside.
    batch_size: examples of one update, or of each part of it with `accumulate`.
    steps: updates of every stage.
    finished: stages that are not made again, such as a teacher's: name -> final participants.

  Returns:
    One Ran for each stage that was trained, in order.

  Raises:
    RehearsalFailed: naming the stage, if a metric or a variable is not finite, or if a learner
      stands still.
  """
  left = dict(finished or {})
  done: list[Ran] = []
  for stage in rehearsal.stages:
    if stage.name in left:
      continue
    size = batch_size * stage.accumulate
    batches = training_batches(stage.examples, batch_size=size, seed=0, threads=0)
    drawn = [next(batches) for _ in range(steps)]
    given = starting_variables(stage, left)
    seen = jax.eval_shape(stage.prepare_evaluation, drawn[0])
    state = create_state(
      stage.scheme,
      stage.optimizer,
      jax.random.key(stage.seed),
      seen,
      given=given,
      # On noise there is nothing to be learned from weights of any kind.
      untrained=[name for name in _frozen(stage, seen) if name not in given],
      average=stage.average_decay is not None,
    )
    before = mapping.host_copy(state.participants)
    if not stage.epochs:
      left[stage.name] = before
      continue
    state, losses = _updated(stage, state, drawn)
    left[stage.name] = mapping.host_copy(state.participants)
    _check_learners(stage, before, left[stage.name])
    if len(rehearsal.stages) == 1 or any(_comes_from(stage, s) for s in rehearsal.stages):
      left[stage.name] = _settled(stage, left[stage.name], drawn[-1])
    done.append(Ran(stage.name, losses, left[stage.name]))
  return done


def _frozen(stage: Stage, seen: Batch) -> tuple[str, ...]:
  """The participants that do not learn."""
  everyone = jax.eval_shape(stage.scheme.init, jax.random.key(0), seen)
  return frozen(everyone, stage.scheme.learners)


def _stored(data: Dataset, count: int) -> Batch:
  """The shapes of a batch as it comes from the data set."""
  batch = build.batch_shapes(data.image_shape, (count,))
  return dataclasses.replace(batch, images=batch.images.update(dtype=jnp.uint8))


def _updated(
  stage: Stage, state: TrainState, batches: Sequence[Batch]
) -> tuple[TrainState, tuple[float, ...]]:
  """The state after an update from each batch, and every update's loss."""
  chosen = jax.local_devices()[:1]
  step = mapping.map_training_step(
    stage.training_step(), chosen, frozen=frozen(state.participants, stage.scheme.learners)
  )
  state = mapping.replicate(state, chosen)
  losses: list[float] = []
  for batch in batches:
    state, metrics = step(state, mapping.shard(batch, chosen))
    found = {name: float(total) for name, (total, _) in metrics.items()}
    wrong = sorted(name for name, value in found.items() if not np.isfinite(value))
    if wrong:
      raise RehearsalFailed(
        f"stage {stage.name!r}: not finite at update {len(losses) + 1}: {', '.join(wrong)}"
      )
    losses.append(found["loss"])
  return state, tuple(losses)


def _comes_from(stage: Stage, later: Stage) -> bool:
  return any(source.partition("/")[0] == stage.name for source in later.inherit.values())


def _settled(stage: Stage, participants: Participants, batch: Batch) -> Participants:
  """The participants with the running statistics of many more passes, as a trained network's are.

  After two updates they are those of no network: a deep one's signal then grows without bounds.
  """

  def passed(participants: Participants, batch: Batch) -> Participants:
    batch = stage.prepare_evaluation(batch)
    _, aux = stage.scheme.loss(
      select(participants, stage.scheme.learners),
      participants,
      batch,
      stage.scheme.targets(participants, batch),
      Context(jax.random.key(0), jnp.int32(0), mapping.AXIS_NAME),
    )
    return update(participants, aux.state)

  # As if over the devices, by whose axis statistics are pooled.
  mapped = jax.jit(
    jax.vmap(passed, in_axes=(None, 0), axis_name=mapping.AXIS_NAME),
    compiler_options={"xla_backend_optimization_level": 0},
  )
  one_device = jax.tree.map(lambda x: np.asarray(x)[None], batch)
  for _ in range(_PASSES):
    participants = jax.tree.map(lambda x: x[0], mapped(participants, one_device))
  return mapping.host_copy(participants)


def _check_learners(stage: Stage, before: Participants, after: Participants) -> None:
  for learner in stage.scheme.learners:
    own = select(before, [learner])
    # One without parameters, such as a temperature that adapts, moves by other rules.
    if jax.tree.leaves(own) and not _differ(own, select(after, [learner])):
      raise RehearsalFailed(f"stage {stage.name!r}: {learner!r} is to learn and did not move")
  if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after)):
    raise RehearsalFailed(f"stage {stage.name!r}: variables are not finite after its updates")


def _differ(one: Any, other: Any) -> bool:
  pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  return any(not np.array_equal(a, b) for a, b in pairs)
