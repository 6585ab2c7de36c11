"""Golden cases of OKDDip, with the attention of its module."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.adapters import PeerAttention
from jaxkd.methods import ramp
from jaxkd.types import Output
from tests.golden_adapters.case_outputs import several_logits
from tests.golden_cases import Arrays, Case


def okddip(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  peers, leader = several_logits("branch", arrays), Output(arrays["leader"])
  features = [arrays[f"feature_{i}"] for i in range(len(peers))]
  kernels = {name: {"kernel": arrays[f"{name}_kernel"]} for name in ("query", "key")}
  module = PeerAttention(kernels["query"]["kernel"].shape[1])
  attention = module.apply({"params": kernels}, features, train=True)
  terms = losses.diverse_peers(
    peers,
    leader,
    attention,
    temperature=case.number("T", 3.0),
    target_smoothing=case.number("target_eps", 1e-7),
    detached=bool(case.number("target_detached", 0)),
  )
  ce_peers = sum(losses.cross_entropy(peer.logits, arrays["labels"]) for peer in peers)
  ce_leader = losses.cross_entropy(leader.logits, arrays["labels"])
  weight: Any = case.number("consistency_weight", 1.0)
  if case.has("epoch") and case.number("rampup_length", 0.0) > 0:
    length = case.number("rampup_length", 0.0)
    weight = ramp("exponential", steps=length)(jnp.asarray(case.number("epoch", 0.0)))
  taught = terms["peers"].total + terms["leader"].total
  loss = ce_peers + ce_leader + case.number("alpha", 1.0) * weight * taught
  return loss, {
    "aux_attention": attention,
    "aux_peer_targets": jnp.stack(
      [losses.gated_logits(peers, attention[:, i]) for i in range(len(peers))]
    ),
    "aux_ce_peers": ce_peers,
    "aux_ce_leader": ce_leader,
    "aux_kl_peers": terms["peers"].total,
    "aux_kl_leader": terms["leader"].total,
  }
