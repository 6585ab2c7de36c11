"""Everything that changes during training, as one pytree."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd import networks as trees
from jaxkd.errors import ConfigError, unknown_name
from jaxkd.types import Array, Batch, Participants, Scheme


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """What one step maps to the next, and what a checkpoint holds.

  Attributes:
    step: updates made in this phase, int32.
    rng: the phase's PRNG key data (uint32); steps fold their number into it.
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
    """The participants to predict with: the averaged parameters where an average is kept."""
    if self.average is None:
      return self.participants
    return trees.merge(self.participants, self.average)


class FirstState:
  """What a phase starts from: its shapes at once, its values when asked, from one trace.

  Attributes:
    shapes: the state's shapes and types.
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
    """Computes nothing.

    Args:
      scheme: whose participants to make.
      optimizer: over the learners' parameters.
      batch: an example batch, for its shapes.
      given: participants that are not drawn afresh but start with these variables.
      untrained: participants that do not learn and are drawn afresh all the same: what is learned
        from them is learned from random weights.
      average: whether to keep a moving average of the learners' parameters.

    Raises:
      ConfigError: if given variables do not fit the participant, naming the first difference; for
        a participant of which nothing learns, if it is neither given nor `untrained`.
    """

    def create(rng: Array, batch: Batch, given: Mapping[str, Any]) -> TrainState:
      init_rng, step_rng = jax.random.split(rng)
      drawn = scheme.init(init_rng, batch)
      for name, variables in given.items():
        check_same_architecture(name, drawn, variables)
      check_frozen(drawn, scheme.learners, given, untrained)
      # XLA drops the work of drawing participants that are then replaced.
      participants = {**drawn, **given}
      learning = trees.select(participants, scheme.learners)
      return TrainState(
        step=jnp.int32(0),
        rng=jax.random.key_data(step_rng),
        participants=participants,
        optimizer=optimizer.init(learning),
        average=learning if average else None,
      )

    # Drawing many differently shaped arrays is compiled once and run once: on the CPU, optimising
    # it took 14 seconds for a ResNet-8, and not optimising it 2.
    self._create = jax.jit(create, compiler_options={"xla_backend_optimization_level": 0})
    # Options of a compilation of its own, which it is not inside another function's trace.
    self._within_trace = jax.jit(create)
    self._arguments = (batch, dict(given or {}))
    self.shapes: TrainState = self._create.eval_shape(jax.random.key(0), *self._arguments)

  def values(self, rng: Array) -> TrainState:
    """The state that a PRNG key draws."""
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
  """A phase's first state, drawn by `rng`; see `FirstState`."""
  first = FirstState(scheme, optimizer, batch, given=given, untrained=untrained, average=average)
  return first.values(rng)


def _is_traced() -> bool:
  """Whether this runs inside a trace: of `jax.jit`, `jax.eval_shape`, `lax.scan` and the like."""
  return isinstance(jnp.zeros(()), jax.core.Tracer)


def check_same_architecture(name: str, expected: Participants, variables: Any) -> None:
  """Raises a ConfigError if `variables` are not those of participant `name`."""
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
  """Raises a ConfigError for a participant that does not learn and has random weights unasked.

  Args:
    participants: all of a scheme's.
    learners: of the scheme.
    given: those whose variables come from elsewhere.
    untrained: those that are meant to be drawn.
  """
  if isinstance(untrained, str):
    raise ConfigError(f"untrained={untrained!r}: expected a sequence of names, ({untrained!r},)")
  for name in untrained:
    if name not in participants:
      raise unknown_name("participant in untrained", name, participants)
    if name in given:
      raise ConfigError(f"untrained={tuple(untrained)!r}: {name!r} is given, so it is not drawn")
  for name in trees.frozen(participants, learners):
    # One without variables has nothing to be given.
    if name not in given and name not in untrained and jax.tree.leaves(participants[name]):
      raise ConfigError(
        f"participant {name!r} does not learn and has no trained weights: expected them as "
        f"given={{{name!r}: variables}}, or untrained=({name!r},) to draw them at random"
      )
