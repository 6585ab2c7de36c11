"""Golden cases of class attention transfer (CAT-KD)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_cases import Arrays, Case


def catkd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  sides = [Output(features={"class_maps": arrays[name]}) for name in ("student", "teacher")]
  parts = ("top_code", "lowest_code")
  partial = bool(case.number("partial", 0))
  assert case.number("norm_eps", 1e-12) == 1e-12
  terms = losses.class_attention(
    *sides,
    resolution=int(case.number("cam_resolution", 2)),
    normalize=bool(case.number("normalize", 1)),
    binarize=bool(case.number("binarize", 0)),
    transfer=parts[int(case.number("strategy", 0))] if partial else "all",
    count=int(case.number("cams_nums", 0)),
    steep_zeros=True,
  )
  cat = case.number("cat_weight", 400.0) * terms.total
  logits = [jnp.mean(arrays[name], axis=(1, 2)) for name in ("student", "teacher")]
  aux = {"aux_loss_cat": cat, "aux_student_logits": logits[0], "aux_teacher_logits": logits[1]}
  if case.number("only_cat", 0):
    return cat, aux
  labels = case.number("ce_weight", 1.0) * losses.cross_entropy(logits[0], arrays["labels"])
  return cat + labels, {**aux, "aux_loss_ce": labels}
