"""Steps whose numbers are not finite: found and undone on the device, without asking the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxkd.types import Array, Participants

# What of a participant is not finite, as bits of one number: the host reads few per learner.
STATISTICS, GRADIENT, UPDATE = 1, 2, 4


class Learner(NamedTuple):
  """How one learner came through a step.

  Attributes:
    faults: which of its parts are not finite, a sum of STATISTICS, GRADIENT and UPDATE.
    gradient_norm: of its own gradient.
  """

  faults: Array
  gradient_norm: Array


def looked_at(
  gradients: Participants, changes: Participants, learning: Participants
) -> dict[str, Learner]:
  """How each learner came through a step.

  A gradient whose norm float32 does not hold, of 1.8e19 and more, counts as not finite, too: to
  clip it would make it zero, and Adam's second moment would stay infinite for good.

  Args:
    gradients: pooled over the devices, as are all others here.
    changes: the learners' new state that is no parameter.
    learning: their parameters after the update.
  """
  found = {}
  for name in sorted(gradients.keys() | changes.keys()):
    norm = jnp.asarray(optax.tree.norm(gradients.get(name, ())), jnp.float32)
    bits = (
      jnp.where(_finite(changes.get(name)), 0, STATISTICS),
      jnp.where(jnp.isfinite(norm), 0, GRADIENT),
      jnp.where(_finite(learning.get(name)), 0, UPDATE),
    )
    found[name] = Learner(sum(bits, start=jnp.int32(0)), norm)
  return found


def is_fine(metrics: Mapping[str, tuple[Array, Array]], found: Mapping[str, Learner]) -> Array:
  """Whether a step may count: all its metrics are finite, and no learner is at fault.

  Args:
    metrics: name -> (sum, count), the loss, its terms and the gradient's norm among them.
    found: see `looked_at`.
  """
  sums = jnp.stack([jnp.asarray(total, jnp.float32) for total, _ in metrics.values()])
  faults = sum((learner.faults for learner in found.values()), start=jnp.int32(0))
  return jnp.isfinite(sums).all() & (faults == 0)


def unless(fine: Array, after: Any, before: Any) -> Any:
  """`after` where a step is fine, else `before`, bit by bit."""
  return jax.tree.map(
    # What nobody changed is the same traced array.
    lambda new, old: new if new is old else jnp.where(fine, new, old),
    after,
    before,
  )


def _finite(tree: Any) -> Array:
  leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
  return jnp.stack([jnp.isfinite(x).all() for x in leaves]).all() if leaves else jnp.bool_(True)
