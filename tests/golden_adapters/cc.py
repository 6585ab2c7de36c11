"""Golden cases of correlation congruence."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd import losses
from tests.golden_cases import Arrays, Case


def cc(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  student, teacher = arrays["student"], arrays["teacher"]
  gamma = case.number("gamma", 0.4)
  if "torchdistill" in case.word("source"):
    kernel: Any = case.word("kernel") or "bilinear"
    options: dict[str, Any] = {"normalize": False, "norm": "frobenius", "kernel": kernel}
    order = int(case.number("max_p", 2))
    return losses.kernel_correlation(student, teacher, gamma=gamma, order=order, **options), {}
  if "Zoo" in case.word("source"):
    order = int(case.number("P_order", 2))
    options = {"eps": case.number("norm_eps", 1e-12)}
    return losses.kernel_correlation(student, teacher, gamma=gamma, order=order, **options), {}
  return losses.adjacent_products(student, teacher, detached=not case.has("grad_teacher")), {}
