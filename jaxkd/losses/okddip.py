"""OKDDip: peers that learn from targets of their own, and a leader that learns from their mean."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError
from jaxkd.losses._checks import check_outputs, check_same_shape, logits_of
from jaxkd.losses._counting import counted_positions, keep
from jaxkd.losses._numerics import widen
from jaxkd.losses.dml import gated_logits, peer_kl
from jaxkd.types import Output, Terms


def diverse_peers(
  peers: Sequence[Output],
  leader: Output,
  attention: ArrayLike,
  *,
  temperature: float | jax.Array = 3.0,
  squared_temperature: bool = True,
  target_smoothing: float = 1e-7,
  detached: bool = False,
  where: ArrayLike | None = None,
) -> dict[str, Terms]:
  """OKDDip: match each peer to its own mixture of all peers, and the leader to their mean.

  "peers": sum_i `peer_kl(z_i, sum_j A_ij z_j)`; "leader": `peer_kl(leader, mean_j z_j)`.

  Args:
    peers: m Outputs with logits (B, ..., C).
    leader: Output with logits of the same shape.
    attention: A, (B, m, m), whose last axis sums to 1: the weight of peer j in the target of peer
      i, as from `jaxkd.adapters.PeerAttention`. It takes a gradient.
    temperature: T > 0.
    squared_temperature: multiply by T^2.
    target_smoothing: a number added to every probability of a target; see `peer_kl`.
    detached: the logits in the targets take no gradient; the attention does.
    where: mask of what counts; see `peer_kl`.

  Returns:
    {"peers": Terms(logit=...), "leader": Terms(logit=...)}, float32 or wider. Both are 0 up to the
    smoothing where all peers and the leader agree.

  Raises:
    ConfigError: for arrays in place of Outputs, no peer, missing logits, shapes that do not fit
      together, or an invalid option.

  Source: Chen et al., "Online Knowledge Distillation with Diverse Peers", AAAI 2020, the authors'
  code: T = 3, with T^2, 1e-7 added to the targets, nothing detached, so that peers also move
  towards each other through their targets. The attention has i = j and no 1 / sqrt(D).

  >>> z = Output(logits=jnp.array([[1.0, 0.0]]))
  >>> terms = diverse_peers([z, z], z, jnp.full((1, 2, 2), 0.5), target_smoothing=0.0)
  >>> float(terms["peers"].total), float(terms["leader"].total)
  (0.0, 0.0)
  """
  what = "diverse_peers"
  check_outputs(what, peers, role="peers")
  if not peers:
    raise ConfigError(f"{what}: peers is empty: expected at least one Output")
  found = [logits_of(peer, what=what, role=f"peer {i}") for i, peer in enumerate(peers)]
  # Widened here, so that the gradients from several targets are summed before they are rounded.
  attention, led, *logits = widen(attention, logits_of(leader, what=what, role="leader"), *found)
  count = len(logits)
  for i, z in enumerate(logits):
    check_same_shape(f"{what}: the leader as", led, z, other=f"peer {i}")
  if attention.shape != (led.shape[0], count, count):
    raise ConfigError(
      f"{what}: attention {attention.shape} does not belong to {count} peers with logits "
      f"{led.shape}: it must be {(led.shape[0], count, count)}"
    )
  counted = counted_positions(what, where, led)
  if counted is not None:
    led, *logits = keep(counted, led, *logits)
    (attention,) = keep(jnp.any(counted.reshape(len(counted), -1), axis=1), attention)
  constant = [Output(lax.stop_gradient(z) if detached else z) for z in logits]

  def divergence(own: jax.Array, shares: jax.Array) -> jax.Array:
    return peer_kl(
      own,
      gated_logits(constant, shares),
      temperature=temperature,
      squared_temperature=squared_temperature,
      target_smoothing=target_smoothing,
      detached=False,
      where=where,
    )

  first, *rest = (divergence(z, attention[:, i]) for i, z in enumerate(logits))
  equal = jnp.full((led.shape[0], count), 1 / count, led.dtype)
  return {
    "peers": Terms(logit=sum(rest, start=first)),
    "leader": Terms(logit=divergence(led, equal)),
  }
