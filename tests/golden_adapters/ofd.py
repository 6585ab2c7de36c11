"""Golden cases of OFD: its loss, its margins and its connectors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.adapters import Regressor
from jaxkd.types import Output
from tests.golden_adapters.case_outputs import run_connector, stages_of
from tests.golden_cases import Arrays, Case


def ofd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  if not any(case.has(name) for name in ("student", "student_0")):
    margin = losses.batch_norm_margin(arrays["bn_scale"], arrays["bn_bias"])
    return 0 * jnp.sum(arrays["bn_scale"]), {"aux_margin": margin}
  source = case.word("source")
  student, teacher = stages_of("student", arrays), stages_of("teacher", arrays)
  several = "student" not in arrays
  maps = {}
  for stage, x in student.features.items():
    end = f"_{stage}" if several else ""
    if f"con_kernel{end}" in arrays:
      kernel = arrays[f"con_kernel{end}"]
      connector = Regressor(x.shape[1:3], kernel.shape[-1], use_bias=False, activation=False)
      norm = {part: arrays[f"bn_{part}{end}"] for part in ("scale", "bias")}
      x = run_connector(case, connector, {"conv": {"kernel": kernel}, "bn": norm}, x)
    maps[stage] = x
  ours, theirs = Output(preactivations=maps), Output(preactivations=teacher.features)
  names = [f"margin_{stage}" if several else "margin" for stage in maps]
  margins = [arrays[name] for name in names] if names[0] in arrays else None
  reduction = "batch" if several or "mdistiller" in source else "sum"
  if margins is None:
    reduction = "mean"
  terms = losses.overhaul(
    ours,
    theirs,
    stages=list(maps),
    margins=margins,
    scale=case.number("scale", 1.0),
    reduction=reduction,
  )
  aux = {}
  if several:
    each = [
      losses.partial_l2(maps[s], teacher.features[s], margin=m, reduction="sum")
      for s, m in zip(maps, margins, strict=True)
    ]
    halvings = jnp.arange(len(each) - 1, -1, -1)
    aux["aux_stage_losses"] = jnp.stack(each) * 0.5**halvings
  return terms.total, aux
