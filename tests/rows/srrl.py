"""Rows of softmax regression (SRRL)."""

from __future__ import annotations

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_adapters.srrl import srrl
from tests.rows._counted import LOGITS, kernel
from tests.rows._mutation import Mutation
from tests.rows._networked import Case as Networked
from tests.rows._subject import B, Subject

_LOSS = losses.softmax_regression


def _classified(s, t, **where):
  """The loss of maps with two channels of a position as logits."""
  student, teacher = (Output(x[:, 0, 0, :2], {"stage3": x}) for x in (s, t))
  return _LOSS(student, teacher, **where).total


SUBJECTS = {"softmax_regression": Subject(_classified, (B, 2, 2, 3), (B, 1, 2, 3))}

COUNTED = [kernel("logit_mse", *LOGITS)]

BEHIND_A_NETWORK = {
  "softmax_regression": Networked(
    lambda s, t, y: _LOSS(s, t, stages=("stage2",)).total, of_logits=True
  )
}

MUTATIONS = [
  Mutation(
    "SRRL's maps compared without the mean over space",
    "srrl.py",
    "(jnp.mean(x, axis=(1, 2)) if x.ndim == 4 else x for x in",
    "(jnp.mean(x, axis=1) if x.ndim == 4 else x for x in",
    "test_srrl.py",
    "srrl",
  ),
  Mutation(
    "SRRL's logits not weighted",
    "srrl.py",
    "logit=logit_weight * logit_mse(",
    "logit=1.0 * logit_mse(",
    "test_srrl.py",
    "",
  ),
  Mutation(
    "SRRL's impossible classes compared",
    "srrl.py",
    "student, teacher = (jnp.where(possible, x, 0.0) for x in (student, teacher))",
    "student, teacher = (jnp.where(possible, x, x) for x in (student, teacher))",
    "test_srrl.py",
    "",
  ),
]

GOLDEN = {"srrl": srrl}

RECORDED = ("srrl/stage='pooled'", "srrl/logit_weight=2.0/teacher.count=2")
