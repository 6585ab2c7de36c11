"""The guard of a step: finds results that are not finite, on the device, and undoes the step.

What a phase does about such a step is decided on the host (`jaxkd.train.nonfinite`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxkd.types import Array, Participants

# Which parts of a learner are not finite, as bits of one number: the host reads few arrays.
STATISTICS, GRADIENT, UPDATE = 1, 2, 4


class Learner(NamedTuple):
  """Finiteness flags and gradient norm of one trained network.

  Attributes:
    faults: which of its parts are not finite, a sum of STATISTICS, GRADIENT and UPDATE.
    gradient_norm: norm of its own gradient.
  """

  faults: Array
  gradient_norm: Array


def learner_faults(
  gradients: Participants, changes: Participants, learning: Participants
) -> dict[str, Learner]:
  """Finiteness flags and gradient norm of each trained network after a step.

  A gradient whose norm overflows float32, 1.8e19 and more, counts as not finite, too: clipping
  would make it zero, and Adam's second moment would stay infinite.

  Args:
    gradients: participant -> gradient, pooled over the devices, as all arguments are.
    changes: participant -> new state that is no parameter.
    learning: participant -> parameters after the update.
  """
  found = {}
  for name in sorted(gradients.keys() | changes.keys()):
    norm = jnp.asarray(optax.tree.norm(gradients.get(name, ())), jnp.float32)
    bits = (
      jnp.where(_all_finite(changes.get(name)), 0, STATISTICS),
      jnp.where(jnp.isfinite(norm), 0, GRADIENT),
      jnp.where(_all_finite(learning.get(name)), 0, UPDATE),
    )
    found[name] = Learner(sum(bits, start=jnp.int32(0)), norm)
  return found


def is_finite(metrics: Mapping[str, tuple[Array, Array]], learners: Mapping[str, Learner]) -> Array:
  """Check whether all metrics of a step are finite and no learner has a fault.

  Args:
    metrics: name -> (sum, count), including the loss, its terms and the gradient's norm.
    learners: result of `learner_faults`.
  """
  sums = jnp.stack([jnp.asarray(total, jnp.float32) for total, _ in metrics.values()])
  faults = sum((learner.faults for learner in learners.values()), start=jnp.int32(0))
  return jnp.isfinite(sums).all() & (faults == 0)


def select(finite: Array, after: Any, before: Any) -> Any:
  """Return `after` where `finite` is true, else `before`, bit by bit."""
  return jax.tree.map(
    # An unchanged leaf is the same traced array.
    lambda new, old: new if new is old else jnp.where(finite, new, old),
    after,
    before,
  )


def _all_finite(tree: Any) -> Array:
  leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
  return jnp.stack([jnp.isfinite(x).all() for x in leaves]).all() if leaves else jnp.bool_(True)
