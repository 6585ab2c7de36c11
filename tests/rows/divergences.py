"""Rows of generalised divergences."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd import losses
from tests.golden_adapters.divergences import divergences
from tests.rows._counted import LOGITS, Case, kernel
from tests.rows._mutation import Mutation
from tests.rows._networked import of_logits as networked
from tests.rows._subject import B, Subject, of_logits

FORMS = (
  {"divergence": "reverse"},
  {"divergence": "symmetric", "beta": 0.3},
  {"divergence": "jensen_shannon", "beta": 0.3},
  {"divergence": "skewed_forward"},
  {"divergence": "skewed_reverse"},
  {"divergence": "total_variation"},
  {"divergence": "jensen_shannon", "top_k": 2},
  {"divergence": "forward", "top_k": 2, "missing": "renormalized"},
  {"divergence": "forward", "top_k": 2, "missing": "impossible"},
)


def _name(form):
  return "_".join(str(x) for x in form.values())


def _sparse(s, t, **where):
  values, classes = jax.lax.top_k(jax.nn.log_softmax(jax.lax.stop_gradient(t)), 2)
  return losses.top_k_divergence(s, classes, values, **where)


SUBJECTS = {
  f"knowledge_distillation_{_name(form)}": Subject(
    of_logits(losses.knowledge_distillation, **form), (B, 5), (B, 5), long=True
  )
  for form in FORMS
}

COUNTED = [
  kernel("soft_target_divergence", *LOGITS, divergence="jensen_shannon", top_k=2),
  Case("top_k_divergence", _sparse, *LOGITS),
]

MORE = {"top_k_divergence": (jnp.zeros((2, 3)),)}

BEHIND_A_NETWORK = {
  f"knowledge_distillation {_name(form)}": networked(losses.knowledge_distillation, **form)
  for form in FORMS
}

MUTATIONS = [
  Mutation(
    "shares of the Jensen-Shannon divergence exchanged",
    "_divergences.py",
    "return share * one + (1.0 - share) * other",
    "return (1.0 - share) * one + share * other",
    "test_divergences.py",
    "divergences",
  ),
  Mutation(
    "the student's bucket without its class sum",
    "divergences.py",
    "total = jnp.where(none, -jnp.inf, total)",
    "total = jnp.where(none, -jnp.inf, 0.0 * total)",
    "test_divergences.py",
    "divergences",
  ),
  Mutation(
    "total variation not halved",
    "_divergences.py",
    "return 0.5 * jnp.sum(",
    "return jnp.sum(",
    "test_divergences.py",
    "divergences",
  ),
]

GOLDEN = {"divergences": divergences}

RECORDED = (
  "kd/divergence='reverse'",
  "kd/divergence='jensen_shannon'/beta=0.3",
  "kd/top_k=2/missing='impossible'",
)
