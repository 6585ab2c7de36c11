"""Rows of one-for-all distillation (OFA)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_adapters.ofa import ofa
from tests.rows import _counted, _networked
from tests.rows._mutation import Mutation
from tests.rows._subject import B, Subject


def total(parts):
  return sum(terms.total for terms in parts.values())


def of_exits(**options):
  """One head and the student's own logits, of five classes; the labels are the teacher's."""

  def apply(s, t, **where):
    labels = jax.lax.stop_gradient(jnp.argmax(t[:, ::-1], axis=-1))
    exits = [Output(logits=s[:, :5]), Output(logits=s[:, 5:])]
    return total(losses.one_for_all(exits, Output(logits=t), labels, **options, **where))

  return apply


def of_labels(**options):
  def call(s, t, **where):
    # Padding has no label.
    labels = jax.lax.stop_gradient(jnp.where(jnp.isfinite(t[:, 0]), jnp.argmax(t, axis=-1), -1))
    return losses.enhanced_cross_entropy(s, t, labels, **options, **where)

  return _counted.Case("enhanced_cross_entropy", call, *_counted.LOGITS)


def behind(**options):
  def loss(s, t, y):
    return total(losses.one_for_all(_networked.exits(s), t, y, **options))

  return _networked.Case(loss, of_logits=True)


SHARP = {
  "exponent": 1.5,
  "stage_exponents": (0.5,),
  "temperature": 3.0,
  "standardize": True,
}

SUBJECTS = {
  "one_for_all": Subject(of_exits(), (B, 10), (B, 5)),
  "one_for_all_exponents": Subject(of_exits(**SHARP), (B, 10), (B, 5), long=True),
}

COUNTED = [of_labels(), of_labels(exponent=2.0)]

BEHIND_A_NETWORK = {
  "one_for_all": behind(),
  "one_for_all exponents": behind(exponent=1.5, stage_exponents=(0.5, 2.0), temperature=3.0),
}

MUTATIONS = [
  Mutation(
    "OFA's label not enhanced",
    "ofa.py",
    "target = jnp.where(chosen, enhanced, others)",
    "target = others",
    "test_ofa.py",
    "ofa",
  ),
  Mutation(
    "OFA's one-hot not subtracted",
    "ofa.py",
    "enhanced = jnp.expm1(exponent * jnp.log1p(jnp.exp(log_p)))",
    "enhanced = jnp.exp(exponent * jnp.log1p(jnp.exp(log_p)))",
    "test_ofa.py",
    "ofa",
  ),
  Mutation(
    "OFA's heads without the student's own temperature",
    "ofa.py",
    "log_q = log_probabilities(student, temperature)",
    "log_q = log_probabilities(student)",
    "test_ofa.py",
    "ofa",
  ),
]

LABELS = jnp.array([0, 1])
CALLS = {"one_for_all": lambda s, t: losses.one_for_all([s, s], t, LABELS)}
MORE = {"enhanced_cross_entropy": (LABELS,)}

GOLDEN = {"ofa": ofa}

RECORDED = ("ofa/exponent=1.5/temperature=2.0/stages=('pooled','auto')",)
