"""Rows of transformed teacher matching (TTM, WTTM)."""

from __future__ import annotations

from jaxkd import losses
from tests.golden_adapters.ttm import ttm
from tests.rows import _networked
from tests.rows._counted import LOGITS, kernel
from tests.rows._mutation import Mutation
from tests.rows._subject import B, Subject, of_logits

_MATCHING = losses.transformed_teacher_matching

SUBJECTS = {
  "transformed_teacher_matching": Subject(
    of_logits(_MATCHING, exponent=0.25, weighted=True), (B, 5), (B, 5)
  ),
  "transformed_teacher_matching_unweighted": Subject(
    of_logits(_MATCHING), (B, 5), (B, 5), long=True
  ),
}

COUNTED = [kernel("transformed_teacher_kl", *LOGITS, exponent=0.5)]

BEHIND_A_NETWORK = {
  "transformed_teacher_matching": _networked.of_logits(_MATCHING, weighted=True),
}

MUTATIONS = [
  Mutation(
    "TTM's student tempered like the teacher",
    "ttm.py",
    "relative_entropy(log_probabilities(student), log_q)",
    "relative_entropy(log_probabilities(student, 1.0 / exponent), log_q)",
    "test_ttm.py",
    "ttm",
  ),
  Mutation(
    "WTTM without its weights",
    "ttm.py",
    "divergence = power_sum(teacher, log_q, exponent) * divergence",
    "divergence = divergence",
    "test_ttm.py",
    "ttm",
  ),
  Mutation(
    "WTTM's power sum of normalised powers",
    "ttm.py",
    "jnp.exp(exponent * largest - jnp.max(log_q, axis=-1))",
    "jnp.exp(largest - jnp.max(log_q, axis=-1))",
    "test_ttm.py",
    "ttm",
  ),
]

GOLDEN = {"ttm": ttm}
