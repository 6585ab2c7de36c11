"""Rows of PS-KD."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_adapters.pskd import pskd
from tests.rows._counted import LOGITS, Case
from tests.rows._mutation import Mutation
from tests.rows._networked import Case as Networked
from tests.rows._subject import B, Subject

LABELS = jnp.array([0, 1])


def _of_past(**options):
  """Labels are the classes that are last in the past's order; padding has none."""

  def apply(s, t, **where):
    labels = jnp.where(jnp.isfinite(t[:, 0]), jnp.argmin(t, axis=-1), -1)
    loss = losses.progressive_self_distillation
    return loss(Output(s), Output(t), jax.lax.stop_gradient(labels), **options, **where).total

  return apply


def _of_kernel(s, t, **where):
  labels = jax.lax.stop_gradient(jnp.where(jnp.isfinite(t[:, 0]), jnp.argmin(t, axis=-1), -1))
  return losses.past_cross_entropy(s, jax.nn.softmax(t), labels, past_weight=0.3, **where)


SUBJECTS = {"progressive_self_distillation": Subject(_of_past(), (B, 5), (B, 5))}

COUNTED = [Case("past_cross_entropy", _of_kernel, *LOGITS)]

CALLS = {
  "progressive_self_distillation": lambda s, t: losses.progressive_self_distillation(s, t, LABELS)
}
MORE = {"past_cross_entropy": (LABELS,)}

BEHIND_A_NETWORK = {
  "progressive_self_distillation": Networked(
    lambda s, t, y: losses.progressive_self_distillation(s, t, y).total, of_logits=True
  )
}

MUTATIONS = [
  Mutation(
    "PS-KD's labels and past exchanged",
    "pskd.py",
    "return (1 - weight) * labels + weight * past",
    "return weight * labels + (1 - weight) * past",
    "test_pskd.py",
    "pskd",
  ),
  Mutation(
    "PS-KD's past with a gradient",
    "pskd.py",
    '(earlier,) = widen(lax.stop_gradient(logits_of(past, what=what, role="past")))',
    '(earlier,) = widen(logits_of(past, what=what, role="past"))',
    "test_pskd.py",
    "",
  ),
  Mutation(
    "PS-KD's weight one epoch late",
    "pskd.py",
    "(jnp.minimum(epochs, of - 1) + 1) / of",
    "jnp.minimum(epochs, of - 1) / of",
    "test_pskd.py",
    "pskd",
  ),
]

GOLDEN = {"pskd": pskd}
