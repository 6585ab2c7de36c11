"""DOT, the distillation-oriented trainer: a momentum of its own for each of two gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxkd.errors import ConfigError
from jaxkd.train.by_term import LABELS, OTHERS, TermwiseTransformation, whole_gradient
from jaxkd.types import Array


class DotState(NamedTuple):
  """State of `dot`.

  Attributes:
    made: number of earlier updates.
    labels: momentum buffers of the labels' gradient.
    others: momentum buffers of the distillation's gradient.
  """

  made: Array
  labels: Any
  others: Any


def dot(
  schedule: optax.Schedule,
  *,
  momentum: float = 0.9,
  delta: float = 0.075,
  weight_decay: float = 0.0,
  dampening: float = 0.0,
  clip_norm: float = 0.0,
  late_decay: bool = False,
) -> TermwiseTransformation:
  """Return the distillation-oriented trainer, SGD with two momenta.

  With g the gradient of the labels' terms, h that of the distillation terms, both of the weighted
  terms, and w the parameter:

    v = (momentum - delta) v + (1 - dampening) (g + weight_decay w)
    u = (momentum + delta) u + (1 - dampening) h
    w = w - learning rate (v + u)

  At the first update v = g + weight_decay w and u = h. With delta 0 it is SGD on g + h. A parameter
  that only one of both sorts of terms depends on, such as one of an adapter, has one buffer, with
  the momentum `momentum`, and weight decay in it, as in SGD. A parameter that none depends on does
  not change.

  Args:
    schedule: update number -> learning rate.
    momentum: the mean of both momenta.
    delta: half of their difference; 0.075 in the paper for CIFAR-100 and Tiny-ImageNet, 0.09 for
      ImageNet.
    weight_decay: coefficient; 0 for none.
    dampening: as of torch.optim.SGD.
    clip_norm: largest global norm of g + h, to which both are scaled by one factor; 0 for none.
    late_decay: leave out the weight decay of a parameter that the distillation alone reaches at its
      first update, as the published code does.

  Raises:
    ConfigError: if a momentum is not in 0 <= m < 1.

  Source: Zhao et al., "DOT: A Distillation-Oriented Trainer", ICCV 2023, equations 5 to 7; updates
  and momenta are those of megvii-research/mdistiller, mdistiller/engine/dot.py. There, a momentum
  of the labels of 0 also turns off the momentum of parameters that only labels reach, as here.
  """
  low, high = momentum - delta, momentum + delta
  if delta < 0 or low < 0 or high >= 1:
    raise ConfigError(
      f"delta={delta:g} with momentum={momentum:g}: expected a number >= 0, with momentum - delta "
      f">= 0 and momentum + delta < 1, got {low:g} and {high:g}"
    )
  middle = (low + high) / 2

  def init(learning: Any) -> DotState:
    zeros = jax.tree.map(jnp.zeros_like, learning)
    return DotState(jnp.int32(0), zeros, zeros)

  def next_buffer(first: Array, buffer: Array, m: float, g: Array) -> Array:
    # The buffers are 0 at first: only the dampening differs then.
    return m * buffer + (jnp.where(first, 1.0, 1 - dampening) if dampening else 1.0) * g

  def one(first: Array, w: Array, g: Any, h: Any, v: Array, u: Array) -> tuple[Array, Array, Array]:
    """Return the update but for the learning rate, and both buffers, for one parameter."""
    decay = weight_decay * w
    change = jnp.zeros_like(w)
    if g is not None:
      if low == 0:
        change += g + decay
      else:
        v = next_buffer(first, v, middle if h is None else low, g + decay)
        change += v
    if h is not None:
      if g is None:
        h = h + (jnp.where(first, 0.0, decay) if late_decay else decay)
      u = next_buffer(first, u, middle if g is None else high, h)
      change += u
    return change.astype(w.dtype), v.astype(w.dtype), u.astype(w.dtype)

  def update(gradients: Any, state: DotState, learning: Any = None) -> tuple[Any, DotState]:
    if clip_norm:
      gradients = _clipped(gradients, clip_norm)
    parameters, structure = jax.tree.flatten(learning)
    aligned = [
      jax.tree.flatten(tree, is_leaf=lambda x: x is None)[0]
      for tree in (gradients[LABELS], gradients[OTHERS], state.labels, state.others)
    ]
    first = state.made == 0
    rows = [one(first, *row) for row in zip(parameters, *aligned, strict=True)]
    changes, v, u = (jax.tree.unflatten(structure, [row[k] for row in rows]) for k in range(3))
    rate = schedule(state.made)
    updates = jax.tree.map(lambda x: jnp.asarray(-rate * x, x.dtype), changes)
    return updates, DotState(optax.safe_increment(state.made), v, u)

  return TermwiseTransformation(init, update)


def _clipped(gradients: Any, clip_norm: float) -> Any:
  """Scale both gradients such that the norm of their sum is at most `clip_norm`."""
  norm = optax.tree.norm(whole_gradient(gradients))
  factor = jnp.where(norm < clip_norm, 1.0, clip_norm / norm)
  return jax.tree.map(lambda g: (factor * g).astype(g.dtype), gradients)
