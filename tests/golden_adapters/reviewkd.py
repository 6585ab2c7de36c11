"""Golden cases of ReviewKD: its loss, one step of its fusion, and the whole objective."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.adapters import AttentionFusion, ReviewFusion
from jaxkd.methods.ramps import warm_up
from jaxkd.types import Output
from tests.golden_adapters.case_outputs import run_adapter, stages_of
from tests.golden_cases import Arrays, Case


def reviewkd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  aux = {}
  if case.has("x"):
    x, deeper, teacher = arrays["x"], arrays.get("y"), arrays["teacher"]
    kernel = arrays["conv2_kernel"]
    fusion = AttentionFusion(kernel.shape[2], kernel.shape[3], teacher.shape[1:3])
    out, fused = run_adapter(case, fusion, _weights(arrays, ""), (x, deeper))
    aux = {"aux_out": out, "aux_residual": fused}
    student, teacher = Output(features={"0": out}), Output(features={"0": teacher})
  else:
    student, teacher = stages_of("student", arrays), stages_of("teacher", arrays)
  stages = list(student.features)
  return losses.knowledge_review(student, teacher, stages=stages).total, aux


def reviewkd_full(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  count = int(case.number("n_stages", 3))
  names = [*map(str, range(count)), "pooled"]
  student, teacher = (
    Output(features={name: arrays[f"{side}_{name}"] for name in names})
    for side in ("student", "teacher")
  )
  fusion = ReviewFusion(
    tuple((name, name) for name in names),
    tuple(teacher.features[name].shape[1:] for name in names),
    arrays["abf_0_conv1_kernel"].shape[3],
  )
  params = {f"fuse_{name}": _weights(arrays, f"abf_{i}_") for i, name in enumerate(names)}
  student, teacher = run_adapter(case, fusion, params, ((student, teacher, None),))
  review = losses.knowledge_review(student, teacher, stages=names).total
  weight = warm_up(
    case.number("reviewkd_weight", 1.0), epochs=case.number("warmup_epochs", 20), steps_per_epoch=1
  )
  # Epochs count from 1, steps from 0.
  step = jnp.int32(case.number("epoch", 20)) - 1
  review *= weight(step) if callable(weight) else weight
  labels = losses.cross_entropy(arrays["student_logits"], arrays["labels"])
  labels *= case.number("ce_weight", 1.0)
  aux = {"aux_loss_ce": labels, "aux_loss_kd": review}
  for i, name in enumerate(names):
    out = student.features[name]
    aux[f"aux_out_{i}"] = out if out.ndim == 4 else out[:, None, None, :]
  return labels + review, aux


def _weights(arrays: Arrays, prefix: str) -> dict[str, Any]:
  """One step of the fusion: the arrays whose names begin with `prefix`."""
  params: dict[str, Any] = {}
  for name in ("conv1", "conv2"):
    params[name] = {"kernel": arrays[f"{prefix}{name}_kernel"]}
  for name in ("bn1", "bn2"):
    params[name] = {part: arrays[f"{prefix}{name}_{part}"] for part in ("scale", "bias")}
  if f"{prefix}att_kernel" in arrays:
    params["gates"] = {part: arrays[f"{prefix}att_{part}"] for part in ("kernel", "bias")}
  return params
