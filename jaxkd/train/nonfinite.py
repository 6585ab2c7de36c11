"""Steps whose numbers are not finite: found and undone on the device, without asking the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd.types import Array, Participants

# What of a participant is not finite, as bits of one number: the host reads one per learner.
STATISTICS, GRADIENT, UPDATE = 1, 2, 4


def faults(
  gradients: Participants, changes: Participants, learning: Participants
) -> dict[str, Array]:
  """Learner -> which of its parts are not finite, a sum of STATISTICS, GRADIENT and UPDATE.

  A gradient whose norm float32 does not hold, of 1.8e19 and more, counts as not finite, too: to
  clip it would make it zero, and Adam's second moment would stay infinite for good.

  Args:
    gradients: pooled over the devices, as are all others here.
    changes: the learners' new state that is no parameter.
    learning: their parameters after the update.
  """
  none = jnp.int32(0)
  found = {}
  for name in sorted(gradients.keys() | changes.keys()):
    gradient = jnp.isfinite(optax.tree.norm(gradients.get(name, ())))
    found[name] = sum(
      (
        jnp.where(fine, 0, bit)
        for bit, fine in (
          (STATISTICS, _finite(changes.get(name))),
          (GRADIENT, gradient),
          (UPDATE, _finite(learning.get(name))),
        )
      ),
      start=none,
    )
  return found


def is_fine(metrics: Mapping[str, tuple[Array, Array]], found: Mapping[str, Array]) -> Array:
  """Whether a step may count: all its metrics are finite, and no learner is at fault.

  Args:
    metrics: name -> (sum, count), the loss, its terms and the gradient's norm among them.
    found: see `faults`.
  """
  sums = jnp.stack([jnp.asarray(total, jnp.float32) for total, _ in metrics.values()])
  return jnp.isfinite(sums).all() & (sum(found.values(), start=jnp.int32(0)) == 0)


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
