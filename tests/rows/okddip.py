"""Rows of OKDDip."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_adapters.okddip import okddip
from tests.rows._mutation import Mutation
from tests.rows._networked import Case as Networked
from tests.rows._subject import B, Subject


def _of_peers(**options):
  """Two peers and a leader of three classes; the attention is constant."""

  def apply(s, t, **where):
    wide = t.astype(jnp.promote_types(t.dtype, jnp.float32))
    attention = jax.lax.stop_gradient(jax.nn.softmax(wide))
    peers, leader = [Output(s[:, :3]), Output(s[:, 3:6])], Output(s[:, 6:])
    terms = losses.diverse_peers(peers, leader, attention, **options, **where)
    return terms["peers"].total + terms["leader"].total

  return apply


def _behind(s, t, y):
  attention = jnp.full((len(y), 2, 2), 0.5)
  peers = [s, Output(0.5 * s.logits[:, ::-1])]
  terms = losses.diverse_peers(peers, Output(-s.logits), attention)
  return terms["peers"].total + terms["leader"].total


SUBJECTS = {
  # The rounding of a smoothed target is that of `native_ensemble`.
  "diverse_peers": Subject(_of_peers(), (B, 9), (B, 2, 2), rounding=1e-6)
}

CALLS = {
  "diverse_peers": lambda s, t: losses.diverse_peers([s], t, jnp.ones((2, 1, 1))),
}

BEHIND_A_NETWORK = {"diverse_peers": Networked(_behind, of_logits=True)}

MUTATIONS = [
  Mutation(
    "OKDDip's attention transposed",
    "okddip.py",
    "divergence(z, attention[:, i])",
    "divergence(z, attention[:, :, i])",
    "test_okddip.py",
    "okddip",
  ),
  Mutation(
    "OKDDip's targets always constant",
    "okddip.py",
    "lax.stop_gradient(z) if detached else z",
    "lax.stop_gradient(z)",
    "test_okddip.py",
    "okddip",
  ),
  Mutation(
    "OKDDip's leader without T^2",
    "okddip.py",
    "Terms(logit=divergence(led, equal))",
    "Terms(logit=divergence(led, equal) / temperature**2)",
    "test_okddip.py",
    "okddip",
  ),
]

GOLDEN = {"okddip": okddip}

RECORDED = ("okddip/ramp='none'/detached=True",)
