"""Initial participants of a scheme, its loss and gradients, and one update, compiled cheaply."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd.networks import select
from jaxkd.runtime.fast_compilation import FAST_OPTIONS
from jaxkd.train import TrainState, training_step
from jaxkd.train.step import Prepare
from jaxkd.types import Aux, Batch, Context, Participants, Scheme
from tests.tiny import batch

# Everything here runs once or twice: the compiler's time is what counts.
jit = functools.partial(jax.jit, compiler_options=FAST_OPTIONS)


def start(scheme: Scheme, seed: int = 0, data: Batch | None = None) -> Participants:
  return jit(scheme.init)(jax.random.key(seed), batch() if data is None else data)


def context() -> Context:
  return Context(jax.random.key(1), jnp.int32(0))


def loss_and_gradients(scheme: Scheme) -> Any:
  """(participants, batch) -> ((scalar, Aux), gradients by every variable of every participant).

  The targets are differentiated through, too: a teacher that only escapes training because they
  are computed elsewhere is found out.
  """

  def loss(participants: Participants, data: Batch) -> tuple[jax.Array, Aux]:
    learning = select(participants, scheme.learners)
    targets = scheme.targets(participants, data)
    return scheme.loss(learning, participants, data, targets, context())

  return jit(jax.value_and_grad(loss, has_aux=True))


def unprepared(keys: Any, data: Batch) -> Batch:
  return data


def updated(
  scheme: Scheme,
  participants: Participants,
  data: Batch,
  *,
  optimizer: optax.GradientTransformation | None = None,
  prepare: Prepare = unprepared,
) -> Participants:
  """The participants after one update, by default by plain gradient descent on the data as is."""
  optimizer = optimizer or optax.sgd(0.1)
  step = training_step(scheme, optimizer, prepare, axis_name=None)
  state = TrainState(
    jnp.int32(0),
    jax.random.key_data(jax.random.key(0)),
    participants,
    optimizer.init(select(participants, scheme.learners)),
  )
  return jit(step)(state, data)[0].participants


def assert_same(a: Any, b: Any) -> None:
  """The same tree of the same bits."""
  jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_all_zero(tree: Any) -> None:
  assert jax.tree.leaves(tree)
  jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, np.zeros_like(leaf)), tree)


def assert_all_moved(before: Any, after: Any) -> None:
  """No leaf is what it was."""
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after)
  still = [jax.tree_util.keystr(path) for path, yes in jax.tree.leaves_with_path(moved) if not yes]
  assert not still, still
