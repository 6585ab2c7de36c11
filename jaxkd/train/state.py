"""The training state, one pytree of everything that changes during training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd import networks as trees
from jaxkd.errors import ConfigError, unknown_name
from jaxkd.types import TABLE, Array, Batch, Participants, Scheme


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """The state that a step maps to the next one, and that a checkpoint holds.

  Attributes:
    step: number of updates made in this phase, int32.
    rng: the phase's PRNG key data (uint32); each step folds its number into it.
    participants: every network's variables.
    optimizer: the optimizer's state over the learners' parameters.
    average: exponential moving average of the learners' parameters, or None.
  """

  step: Array
  rng: Array
  participants: Participants
  optimizer: Any
  average: Any = None

  @property
  def predicting(self) -> Participants:
    """The participants to predict with: those with averaged parameters, if an average is kept."""
    if self.average is None:
      return self.participants
    return trees.merge(self.participants, self.average)


class FirstState:
  """The state that a phase starts from: its shapes, and on request its values, from one trace.

  Attributes:
    shapes: shapes and types of the state.
  """

  def __init__(
    self,
    scheme: Scheme,
    optimizer: optax.GradientTransformation,
    batch: Batch,
    *,
    given: Mapping[str, Any] | None = None,
    untrained: Sequence[str] = (),
    average: bool = False,
  ) -> None:
    """Trace the initialisation; compute nothing.

    Args:
      scheme: the scheme whose participants are made.
      optimizer: over the learners' parameters.
      batch: an example batch, for its shapes.
      given: participant -> variables that it starts with; others are drawn at random.
      untrained: participants that do not learn and are drawn at random nevertheless: others then
        learn from random weights.
      average: whether to keep a moving average of the learners' parameters.

    Raises:
      ConfigError: if given variables do not fit the participant, naming the first difference; if a
        participant of which nothing learns is neither given nor in `untrained`.
    """

    def create(rng: Array, batch: Batch, given: Mapping[str, Any]) -> TrainState:
      init_rng, step_rng = _split(rng)
      drawn = scheme.init(init_rng, batch)
      for name, variables in given.items():
        check_same_architecture(name, drawn, variables)
      check_frozen(drawn, scheme.learners, given, untrained)
      # XLA removes the drawing of participants that are then replaced.
      participants = {**drawn, **given}
      learning = trees.select(participants, scheme.learners)
      return TrainState(
        step=jnp.int32(0),
        rng=step_rng,
        participants=participants,
        optimizer=optimizer.init(learning),
        average=learning if average else None,
      )

    # A program that draws many arrays is compiled once and run once: on the CPU, compiling it with
    # optimisation took 14 seconds for a ResNet-8, and without 2.
    self._create = jax.jit(create, compiler_options={"xla_backend_optimization_level": 0})
    # Inside another function's trace there is no compilation, which options could apply to.
    self._within_trace = jax.jit(create)
    self._arguments = (batch, dict(given or {}))
    self.shapes: TrainState = self._create.eval_shape(jax.random.key(0), *self._arguments)

  def values(self, rng: Array) -> TrainState:
    """Return the state drawn with a PRNG key."""
    create = self._within_trace if _is_traced() else self._create
    return create(rng, *self._arguments)


def create_state(
  scheme: Scheme,
  optimizer: optax.GradientTransformation,
  rng: Array,
  batch: Batch,
  *,
  given: Mapping[str, Any] | None = None,
  untrained: Sequence[str] = (),
  average: bool = False,
) -> TrainState:
  """Return a phase's first state, drawn with `rng`; see `FirstState`."""
  first = FirstState(scheme, optimizer, batch, given=given, untrained=untrained, average=average)
  return first.values(rng)


def step_rng(seed: int) -> Array:
  """Return `TrainState.rng` of a phase with this seed, on which the views of examples depend."""
  return _split(jax.random.key(seed))[1]


def _split(rng: Array) -> tuple[Array, Array]:
  """Return the key of initialisation, and the key data of the steps."""
  init_rng, steps = jax.random.split(rng)
  return init_rng, jax.random.key_data(steps)


def _is_traced() -> bool:
  """Check for a surrounding trace: of `jax.jit`, `jax.eval_shape`, `lax.scan` and so on."""
  return isinstance(jnp.zeros(()), jax.core.Tracer)


def check_same_architecture(name: str, expected: Participants, variables: Any) -> None:
  """Raise a ConfigError if `variables` do not have the shapes of participant `name`."""
  if name not in expected:
    raise ConfigError(f"participant {name!r} is not part of the scheme: {sorted(expected)}")
  want, have = (
    {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)}
    for tree in (expected[name], variables)
  )
  for path in sorted(want.keys() | have.keys()):
    if want.get(path) != have.get(path):
      raise ConfigError(
        f"the weights given for {name!r} are of another architecture: at {path} they have shape "
        f"{have.get(path, 'nothing')}, the model needs {want.get(path, 'nothing')}"
      )


def check_frozen(
  participants: Participants,
  learners: Sequence[str],
  given: Mapping[str, Any],
  untrained: Sequence[str],
) -> None:
  """Raise a ConfigError for a participant that does not learn and has no trained weights.

  Args:
    participants: all participants of a scheme.
    learners: the scheme's learners.
    given: participants with given variables.
    untrained: participants that are to be drawn at random.
  """
  if isinstance(untrained, str):
    raise ConfigError(f"untrained={untrained!r}: expected a sequence of names, ({untrained!r},)")
  for name in untrained:
    if name not in participants:
      raise unknown_name("participant in untrained", name, participants)
    if name in given:
      raise ConfigError(f"untrained={tuple(untrained)!r}: {name!r} is given, so it is not drawn")
  for name in trees.frozen(participants, learners):
    # A participant without variables needs none, and a table is not drawn at random.
    drawn = participants[name].keys() - {TABLE}
    if (
      name not in given
      and name not in untrained
      and any(jax.tree.leaves(participants[name][collection]) for collection in drawn)
    ):
      raise ConfigError(
        f"participant {name!r} does not learn and has no trained weights: expected them as "
        f"given={{{name!r}: variables}}, or untrained=({name!r},) to draw them at random"
      )
