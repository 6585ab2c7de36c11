"""Rows of universal self-knowledge distillation (USKD), and the cases that it shares with NKD."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd import losses
from tests.golden_adapters.nkd import nkd
from tests.rows import _networked
from tests.rows._counted import LOGITS, Case
from tests.rows._counted import of_classes as counted
from tests.rows._mutation import Mutation
from tests.rows._subject import B, Subject, of_classes

LABELS = [0, 1]


def _of_target(s, t, **where):
  labels = jax.lax.stop_gradient(jnp.where(jnp.isfinite(t[:, 0]), jnp.argmax(t, axis=-1), -1))
  return losses.self_target_cross_entropy(s, labels, **where)


# The factor of the target's term depends on the student and takes no gradient, so that finite
# differences are not its gradient; the weak logits learn, which a teacher's do not.
_OPTIONS = {"target_weight": 0.0, "others_weight": 1.0, "weak_weight": 0.0}

SUBJECTS = {
  "unified_self_distillation": Subject(
    of_classes(losses.unified_self_distillation, **_OPTIONS),
    (B, 5),
    (B, 5),
    mapped=of_classes(losses.unified_self_distillation, axis_name="batch", **_OPTIONS),
  ),
}

COUNTED = [
  Case("self_target_cross_entropy", _of_target, *LOGITS),
  counted("ranked_cross_entropy", ranked_by="log_probabilities"),
]

CALLS = {"unified_self_distillation": lambda s, t: losses.unified_self_distillation(s, t, LABELS)}
MORE = {"self_target_cross_entropy": (LABELS,), "ranked_cross_entropy": (LABELS,)}
ONE_SIDED = ("self_target_cross_entropy",)

BEHIND_A_NETWORK = {
  "unified_self_distillation": _networked.of_classes(
    lambda s, t, y: losses.unified_self_distillation(s, t, y, others_weight=0.0)
  ),
}

MUTATIONS = [
  Mutation(
    "USKD's factor not relative to the mean of the batch",
    "uskd.py",
    "own = jnp.where(counts, square + value - mean, 0.0)",
    "own = jnp.where(counts, square + value, 0.0)",
    "test_uskd.py",
    "nkd",
  ),
  Mutation(
    "USKD's classes ranked in rising order",
    "uskd.py",
    "jnp.argsort(-scores, axis=-1)",
    "jnp.argsort(scores, axis=-1)",
    "test_uskd.py",
    "nkd",
  ),
  Mutation(
    "USKD's named classes left among the others",
    "uskd.py",
    "possible = ~named & (student > -jnp.inf)",
    "possible = student > -jnp.inf",
    "test_uskd.py",
    "nkd",
  ),
]

GOLDEN = {"nkd": nkd}

RECORDED = ("uskd/ranked_by='log_probabilities'/target_weight=1.0",)
