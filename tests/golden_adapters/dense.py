"""Golden cases of distillation of dense outputs: channel-wise (CWD) and structured (SKD)."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_cases import Arrays, Case


def cwd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  norm, divergence = case.word("norm_type"), case.word("divergence")
  value = losses.channel_wise(
    Output(logits=arrays["student"]),
    Output(logits=arrays["teacher"]),
    norm="first" if norm == "none" else norm,
    divergence=divergence,
    temperature=case.number("temperature", 1.0) if divergence == "kl" else 1.0,
  )
  return case.number("loss_weight", 1.0) * value.total, {}


def skd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  mode = case.word("mode")
  assert case.number("norm_eps", 1e-8) == 1e-8

  def side(name: str) -> Output:
    logits = arrays.get(f"{name}_logits", arrays.get(name))
    return Output(logits, {"x": arrays.get(f"{name}_feat", arrays.get(name))})

  def terms(pixel: float, pair: float) -> Any:
    return losses.structured(
      side("student"),
      side("teacher"),
      stages=["x"],
      pixel_weight=pixel,
      pair_weight=pair,
      form="code",
      scale=case.number("pool_scale", 0.5),
      norm_detached=bool(case.number("norm_detached", 1)),
    )

  if mode != "both":
    return terms(float(mode == "pixel"), float(mode == "pair")).total, {}
  found = terms(case.number("lambda_pi", 10.0), case.number("lambda_pa", 1.0))
  parts = terms(1.0, 1.0)
  return found.total, {"aux_pixel": parts.logit, "aux_pair": parts.feature}
