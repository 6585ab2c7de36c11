"""Rows of correlation congruence (CC)."""

from __future__ import annotations

from typing import Any

from jaxkd import losses
from tests.golden_adapters.cc import cc
from tests.rows._counted import kernel
from tests.rows._mutation import Mutation
from tests.rows._networked import BOTH, of
from tests.rows._subject import B, Subject, of_maps, of_tokens

_LOSS = losses.correlation_congruence
_TORCHDISTILL: dict[str, Any] = {"normalize": False, "norm": "frobenius"}


def _subject(student, teacher, make=of_maps, long=True, **options):
  return Subject(
    make(_LOSS, **options),
    (B, *student),
    (B, *teacher),
    mapped=make(_LOSS, axis_name="batch", **options),
    long=long,
  )


SUBJECTS = {
  "correlation_congruence": _subject((1, 2, 2), (3,), long=False),
  "correlation_congruence_tokens": _subject((4, 2), (4, 3), make=of_tokens),
  "correlation_congruence_torchdistill": _subject((1, 2, 2), (3,), **_TORCHDISTILL),
  "correlation_congruence_bilinear": _subject((4,), (3,), form="bilinear"),
  "correlation_congruence_adjacent": _subject((2, 3), (2, 3), form="adjacent"),
}

COUNTED = [
  kernel("kernel_correlation", (2, 2, 3), (4,), norm="frobenius"),
  kernel("adjacent_products", (3,), (3,)),
]

BEHIND_A_NETWORK = {
  "correlation_congruence": of(_LOSS, stages=BOTH),
  "correlation_congruence torchdistill": of(_LOSS, stages=("stage2",), **_TORCHDISTILL),
  "correlation_congruence adjacent": of(_LOSS, stages=("pooled",), form="adjacent"),
}

MUTATIONS = [
  Mutation(
    "CC's features not normalised",
    "cc.py",
    "x = unit_vectors(x, 1, eps) if normalize else x",
    "x = x",
    "test_cc.py",
    "cc",
  ),
  Mutation(
    "CC's Gaussian kernel without the factorial",
    "cc.py",
    "(2 * gamma) ** p / math.factorial(p) for",
    "(2 * gamma) ** p for",
    "test_cc.py",
    "cc",
  ),
  Mutation(
    "CC's adjacent examples taken with padding between them",
    "cc.py",
    "gaps = gaps[jnp.argsort(~own, stable=True)]",
    "gaps = gaps",
    "test_cc.py",
    "",
  ),
]

GOLDEN = {"cc": cc}

RECORDED = (
  "cc/form='embedding'/weight=0.02",
  "cc/form='bilinear'/normalize=False/norm='frobenius'",
)
