"""Golden cases of CS-KD."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_cases import Arrays, Case


def cskd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  pair = Output(arrays["student"]), Output(arrays["teacher"])
  aux = {
    "aux_ce": losses.cross_entropy(arrays["student"], arrays["labels"]),
    "aux_cls": losses.class_wise(*pair, temperature=case.number("T", 4.0)).total,
  }
  return aux["aux_ce"] + case.number("lamda", 1.0) * aux["aux_cls"], aux
