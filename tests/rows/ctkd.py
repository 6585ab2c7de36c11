"""Rows of curriculum temperature (CTKD)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_adapters.ctkd import ctkd
from tests.rows import _networked
from tests.rows._counted import LOGITS, Case, kernel
from tests.rows._mutation import Mutation
from tests.rows._subject import B, Subject, of_logits


def temperatures(t):
  """One for each example, a function of the teacher's logits, not rounded to their bfloat16."""
  t = t.astype(jnp.promote_types(t.dtype, jnp.float32))
  return 2.0 + jnp.square(jax.lax.stop_gradient(jax.nn.sigmoid(t[:, 0])))


def by_example(s, t, **where):
  return losses.temperature_kl(s, t, temperatures(t), **where)


def of_examples(s, t, **where):
  student, teacher = Output(logits=s), Output(logits=t)
  options = {"standardize": True, "target_eps": 1e-3, **where}
  return losses.curriculum_temperature(student, teacher, temperatures(t), **options).total


def learned(s, t, y, **options):
  """The temperature is a function of the student, so that its gradient reaches the network."""
  temperature = 1.0 + jax.nn.sigmoid(jnp.mean(s.features["pooled"], axis=1))
  return losses.curriculum_temperature(s, t, temperature, **options).total


SUBJECTS = {
  "curriculum_temperature": Subject(of_logits(losses.curriculum_temperature), (B, 5), (B, 5)),
  "curriculum_temperature_of_examples": Subject(
    of_examples, (B, 5), (B, 5), long=True, rounding=1e-6
  ),
}

COUNTED = [
  kernel("temperature_kl", *LOGITS, temperature=2.0),
  kernel("temperature_kl", *LOGITS, temperature=2.0, target_eps=1e-3),
  Case("temperature_kl", by_example, *LOGITS),
]

BEHIND_A_NETWORK = {
  "curriculum_temperature": _networked.Case(learned, of_logits=True),
  "curriculum_temperature warm": _networked.of_logits(
    losses.curriculum_temperature, temperature=15.0, target_eps=1e-7
  ),
}

MUTATIONS = [
  Mutation(
    "CTKD without T^2",
    "ctkd.py",
    "return jnp.square(temperature) * divergence",
    "return divergence",
    "test_ctkd.py",
    "ctkd",
  ),
  Mutation(
    "CTKD's temperature with its true gradient, not the reversed one",
    "ctkd.py",
    "(primals[1] * tangents[0]).astype",
    "tangents[0].astype",
    "test_ctkd.py",
    "ctkd",
  ),
  Mutation(
    "CTKD's series of the temperature's derivative used for large differences, too",
    "ctkd.py",
    "_NEAR = 2.0",
    "_NEAR = 1e4",
    "test_ctkd.py",
    "ctkd",
  ),
]

GOLDEN = {"ctkd": ctkd}

RECORDED = (
  "ctkd/scope='instance'/target_eps=1e-7",
  "ctkd/curriculum='constant'/standardize=True/least_temperature=0.5",
)
