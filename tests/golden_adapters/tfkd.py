"""Golden cases of teacher-free distillation."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_cases import Arrays, Case


def tfkd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  s, labels = arrays["student"], arrays["labels"]
  classes = s.shape[-1]
  labelled = losses.cross_entropy(s, labels)
  variant = case.word("variant")
  if variant == "ls":
    # The share of all classes of which the others get `smoothing` in sum.
    share = case.number("smoothing", 0.1) * classes / (classes - 1)
    return losses.cross_entropy(s, labels, label_smoothing=share), {"aux_ce": labelled}
  if variant == "reg":
    alpha = case.number("reg_alpha", 0.1)
    term = losses.virtual_teacher(
      Output(logits=s),
      labels,
      correct_probability=case.number("correct_prob", 0.99),
      temperature=case.number("reg_temperature", 20.0),
      classes="mean",
    ).total
  else:
    alpha = case.number("alpha", 0.9)
    term = losses.soft_target_kl(s, arrays["teacher"], temperature=case.number("T", 20.0)) / classes
  multiplier = case.number("multiplier", 1.0)
  return (1 - alpha) * labelled + alpha * multiplier * term, {"aux_ce": labelled}
