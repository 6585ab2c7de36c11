"""Rows of teacher-free distillation (Tf-KD)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_adapters.tfkd import tfkd
from tests.rows._counted import LOGITS, Case
from tests.rows._mutation import Mutation
from tests.rows._networked import Case as Networked
from tests.rows._subject import B, Subject

LABELS = [0, 1]


def _labels(t):
  return jax.lax.stop_gradient(jnp.where(jnp.isfinite(t[:, 0]), jnp.argmax(t, axis=-1), -1))


def _of_virtual(**options):
  def apply(s, t, **where):
    return losses.virtual_teacher(Output(s), _labels(t), **options, **where).total

  return apply


SUBJECTS = {"virtual_teacher": Subject(_of_virtual(temperature=0.2), (B, 5), (B, 5))}

COUNTED = [
  Case(
    "virtual_teacher_kl",
    lambda s, t, **where: losses.virtual_teacher_kl(s, _labels(t), classes="mean", **where),
    *LOGITS,
  )
]

CALLS = {
  # One side alone: that which is not as it should be.
  "virtual_teacher": lambda s, t: losses.virtual_teacher(t if _is_output(s) else s, LABELS)
}
MORE = {"virtual_teacher_kl": (LABELS,)}
ONE_SIDED = ("virtual_teacher_kl",)


def _is_output(x):
  return isinstance(x, Output)


BEHIND_A_NETWORK = {
  "virtual_teacher": Networked(lambda s, t, y: losses.virtual_teacher(s, y).total, of_logits=True)
}

MUTATIONS = [
  Mutation(
    "Tf-KD's student tempered like the virtual teacher",
    "tfkd.py",
    "relative_entropy(log_probabilities(student), log_u)",
    "relative_entropy(log_probabilities(student, temperature), log_u)",
    "test_tfkd.py",
    "tfkd",
  ),
  Mutation(
    "Tf-KD's other classes share the whole probability",
    "tfkd.py",
    "others = (1.0 - correct_probability) / max(student.shape[-1] - 1, 1)",
    "others = 1.0 / max(student.shape[-1] - 1, 1)",
    "test_tfkd.py",
    "tfkd",
  ),
  Mutation(
    "Tf-KD's mean over classes not taken",
    "tfkd.py",
    '(student.shape[-1] if classes == "mean" else 1)',
    "1",
    "test_tfkd.py",
    "tfkd",
  ),
]

GOLDEN = {"tfkd": tfkd}

RECORDED = ("tfkd/form='self'/temperature=6.0/weight=0.475/label_weight=0.05",)
