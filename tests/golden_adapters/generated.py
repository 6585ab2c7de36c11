"""Golden cases of generated features: MGD and ViTKD."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.adapters import MaskedGenerator, TokenGenerator
from jaxkd.types import Output
from tests.golden_cases import Arrays, Case


def _layer(arrays: Arrays, name: str) -> dict[str, jax.Array]:
  return {"kernel": arrays[f"{name}_kernel"], "bias": arrays[f"{name}_bias"]}


def _generation(arrays: Arrays) -> dict[str, Any]:
  return {f"generation{i}": _layer(arrays, f"gen{i}") for i in (1, 2)}


def mgd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  student, teacher = arrays["student"], arrays["teacher"]
  params, align = _generation(arrays), case.has("align_kernel")
  if align:
    params["align"] = _layer(arrays, "align")
  generator = MaskedGenerator(
    size=teacher.shape[1:3],
    channels=teacher.shape[3],
    align=align,
    mask=case.word("mask_mode"),
    masked=case.number("lambda_mgd", 0.15),
  )
  generated = generator.apply({"params": params}, student, arrays["mask"], method="generated")
  terms = losses.masked_generative(
    Output(features={"x": generated}), Output(features={"x": teacher}), stages=["x"]
  )
  return case.number("alpha_mgd", 7e-5) * terms.total, {}


def vitkd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  names = [f"low{i + 1}" for i in range(arrays["student_low"].shape[1])]

  def side(owner: str) -> Output:
    low = jnp.moveaxis(arrays[f"{owner}_low"], 1, 0)
    return Output(features={**dict(zip(names, low, strict=True)), "high": arrays[f"{owner}_high"]})

  params, align = {**_generation(arrays)}, case.has("align_kernel")
  width = arrays["teacher_high"].shape[-1]
  params["mask_token"] = arrays["mask_token"].reshape(1, 1, width)
  if align:
    params["align_high"] = _layer(arrays, "align")
    params |= {f"align_{name}": _layer(arrays, f"align2_{i}") for i, name in enumerate(names)}
  masked = case.number("lambda_vitkd", 0.5)
  pairs = tuple((name, name) for name in names)
  adapter = TokenGenerator(pairs, ("high", "high"), (0, 0), width, align, masked)
  student, teacher = adapter.apply(
    {"params": params}, side("student"), side("teacher"), arrays["noise"], method="compared"
  )
  terms = losses.vit_distillation(
    student,
    teacher,
    low=names,
    low_weight=case.number("alpha_vitkd", 3e-5),
    high_weight=case.number("beta_vitkd", 3e-6),
    masked=masked,
  )
  return terms.total, {}
