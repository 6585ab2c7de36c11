"""Rows of probabilistic knowledge transfer (PKT)."""

from __future__ import annotations

from jaxkd import losses
from tests.golden_adapters.pkt import pkt
from tests.rows._counted import kernel
from tests.rows._mutation import Mutation
from tests.rows._networked import BOTH, of
from tests.rows._networked import of_tokens as networked_tokens
from tests.rows._subject import B, Subject, of_maps, of_tokens

_LOSS = losses.probabilistic_knowledge_transfer

SUBJECTS = {
  "probabilistic_knowledge_transfer": Subject(
    of_maps(_LOSS), (B, 1, 2, 2), (B, 3), mapped=of_maps(_LOSS, axis_name="batch")
  ),
  "probabilistic_knowledge_transfer_tokens": Subject(
    of_tokens(_LOSS),
    (B, 4, 2),
    (B, 4, 3),
    mapped=of_tokens(_LOSS, axis_name="batch"),
    long=True,
  ),
}

COUNTED = [kernel("cosine_similarity_kl", (2, 2, 3), (4,))]

BEHIND_A_NETWORK = {
  "probabilistic_knowledge_transfer": of(_LOSS, stages=BOTH),
  "probabilistic_knowledge_transfer tokens": networked_tokens(_LOSS),
}

MUTATIONS = [
  Mutation(
    "PKT's distributions exchanged",
    "pkt.py",
    "log_p, log_target = jnp.log(student + eps), jnp.log(teacher + eps)",
    "log_p, log_target = jnp.log(teacher + eps), jnp.log(student + eps)",
    "test_pkt.py",
    "pkt",
  ),
  Mutation(
    "PKT's cosines not shifted to [0, 1]",
    "pkt.py",
    "precision=lax.Precision.HIGHEST) + 1.0) / 2.0",
    "precision=lax.Precision.HIGHEST) + 2.0) / 2.0",
    "test_pkt.py",
    "pkt",
  ),
  Mutation(
    "PKT's padding counted among the examples of a distribution",
    "pkt.py",
    "similarities = similarities * counted[None, :]",
    "similarities = similarities * 1.0",
    "test_pkt.py",
    "",
  ),
]

GOLDEN = {"pkt": pkt}

RECORDED = ("pkt/stages=('stage3','pooled')",)
