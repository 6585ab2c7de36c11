"""Golden cases of multi-level logit distillation."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd import losses
from jaxkd.losses.mlkd import shares_of
from jaxkd.types import Output
from tests.golden_cases import Arrays, Case


def mlkd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  variant, temperature = case.word("variant"), case.number("T", 4.0)
  standardize = bool(case.number("logit_stand", 0))
  if variant != "full":
    sides = arrays["student"], arrays["teacher"]
    if variant == "kd":
      value = losses.soft_target_kl(*sides, temperature=temperature, standardize=standardize)
      return value, {}
    kernel = losses.class_correlation if variant == "cc" else losses.batch_correlation
    return kernel(*sides, temperature=temperature), {}

  def temperatures(name: str) -> tuple[float, ...]:
    return tuple(float(t) for t in case.values[name])

  shared = temperatures("kd_weak_temps")
  assert temperatures("cc_temps") == temperatures("bc_temps") == shared
  views = ("student_weak", "teacher_weak", "student_strong", "teacher_strong")
  parts = losses.multi_level(
    *(Output(logits=arrays[view]) for view in views),
    temperatures=shared,
    strong_temperatures=temperatures("kd_strong_temps"),
    repeated_temperatures=temperatures("kd_strong_on_weak_temps"),
    selection="share",
    percentile=case.number("percentile", 50.0),
    standardize=standardize,
  )
  labels = arrays["labels"]
  of_labels = sum(losses.cross_entropy(arrays[f"student_{x}"], labels) for x in ("weak", "strong"))
  weight = case.number("kd_weight", 0.9)
  aux = {
    "aux_loss_ce": case.number("ce_weight", 0.1) * of_labels,
    "aux_loss_kd": weight * parts["instances"].logit,
    "aux_loss_cc": weight * parts["classes"].logit,
    "aux_loss_bc": weight * parts["batch"].logit,
  }
  value = sum(aux.values())
  shares = shares_of(arrays["teacher_weak"], case.number("percentile", 50.0), None, None)
  aux |= dict(zip(("aux_mask_fraction", "aux_class_mask_fraction"), shares, strict=True))
  return value, aux
