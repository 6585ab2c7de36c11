"""Rows of logit standardisation, an option of losses on logits."""

from __future__ import annotations

from jaxkd import losses
from tests.golden_adapters.kd import logit_std
from tests.rows._counted import LOGITS, kernel
from tests.rows._mutation import Mutation
from tests.rows._networked import of_logits as networked
from tests.rows._subject import B, Subject, of_logits

SUBJECTS = {
  "knowledge_distillation_standardized": Subject(
    of_logits(losses.knowledge_distillation, standardize=True), (B, 5), (B, 5), long=True
  ),
}

COUNTED = [kernel("soft_target_kl", *LOGITS, standardize=True)]

BEHIND_A_NETWORK = {
  "knowledge_distillation standardized": networked(
    losses.knowledge_distillation, temperature=2.0, standardize=True
  ),
}

MUTATIONS = [
  Mutation(
    "standardisation with the biased variance",
    "_standardization.py",
    "jnp.maximum(count - 1.0, 1.0)",
    "jnp.maximum(count, 1.0)",
    "test_standardization.py",
    "logit_std",
  ),
  Mutation(
    "standardisation of the student alone",
    "kd.py",
    "student, teacher = standardized(student), standardized(teacher)",
    "student = standardized(student)",
    "test_standardization.py",
    "logit_std",
  ),
  Mutation(
    "rows of equal logits with the gradient of a division by eps",
    "_standardization.py",
    "varies = (deviation > rounding)",
    "varies = (deviation > -1.0)",
    "test_standardization.py",
    "",
  ),
]

GOLDEN = {"logit_std": logit_std}

RECORDED = (
  "kd/standardize=True",
  "dml/standardize=True",
  "one/standardize=True",
  "byot/standardize=True",
  "born_again/generations=1/form='permuted'/standardize=True",
  "multi_exit/adapt_temperature=False/standardize=True",
)
