"""Rows of ReviewKD."""

from __future__ import annotations

from jaxkd import losses
from tests.golden_adapters.reviewkd import reviewkd, reviewkd_full
from tests.rows._counted import kernel
from tests.rows._mutation import Mutation
from tests.rows._networked import BOTH, of
from tests.rows._subject import B, Subject, of_maps

SUBJECTS = {
  "knowledge_review": Subject(of_maps(losses.knowledge_review), (B, 3, 3, 2), (B, 3, 3, 2)),
}

COUNTED = [kernel("hierarchical_context_mse", (3, 3, 2), (3, 3, 2))]

_AT_BOTH = (*BOTH, "pooled")
BEHIND_A_NETWORK = {"knowledge_review": of(losses.knowledge_review, stages=_AT_BOTH)}

MUTATIONS = [
  Mutation(
    "ReviewKD's levels of equal weight",
    "reviewkd.py",
    "weight /= 2",
    "weight /= 1",
    "test_reviewkd.py",
    "reviewkd",
  ),
  Mutation(
    "ReviewKD's levels that are as large as the map counted",
    "reviewkd.py",
    "if level < height:",
    "if level <= height:",
    "test_reviewkd.py",
    "reviewkd",
  ),
  Mutation(
    "ReviewKD not divided by the sum of the levels' weights",
    "reviewkd.py",
    "return total / weights",
    "return total",
    "test_reviewkd.py",
    "reviewkd",
  ),
]

GOLDEN = {"reviewkd": reviewkd, "reviewkd_full": reviewkd_full}

RECORDED = (
  "reviewkd/student_arrays='preactivations'/teacher_arrays='features'/width=6/warmup_epochs=0.0",
)
