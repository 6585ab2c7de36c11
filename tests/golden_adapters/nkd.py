"""Golden cases of normalised knowledge distillation, and of its authors' self-distillation."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_cases import Arrays, Case


def nkd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  student = Output(logits=arrays["student"])
  labels = arrays["labels"] if case.has("labels") else arrays["soft_labels"]
  if case.word("variant") == "uskd":
    weak = arrays["fea_mid"] @ arrays["fc_kernel"] + arrays["fc_bias"][None]
    terms = losses.unified_self_distillation(
      student,
      Output(logits=weak),
      labels,
      target_weight=case.number("alpha", 1.0),
      others_weight=case.number("beta", 0.1),
      weak_weight=case.number("mu", 0.005),
      label_smoothing=case.number("smoothing", 0.1),
      ranked_by="log_probabilities",
    )
    return sum(part.total for part in terms.values()), {}
  terms = losses.normalized_distillation(
    student,
    Output(logits=arrays["teacher"]),
    labels,
    others_weight=case.number("gamma", 1.5),
    temperature=case.number("temp", 1.0),
    without_target=bool(case.number("mask_target", 1)),
  )
  target, others = terms["target"].total, terms["others"].total
  return target + others, {"aux_target_term": target}
