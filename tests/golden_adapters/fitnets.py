"""Golden cases of FitNets and SimKD."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.adapters import Projector, Regressor
from jaxkd.types import Output
from tests.golden_adapters.case_outputs import run_connector
from tests.golden_cases import Arrays, Case


def fitnet(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  student, teacher = arrays["student"], arrays["teacher"]
  aux = {}
  kernel = arrays.get("conv_kernel")
  if case.has("conv_tkernel"):
    # The reference code flips the kernel.
    kernel = arrays["conv_tkernel"][::-1, ::-1]
  if kernel is not None:
    if student.ndim == 2:
      kernel = kernel.reshape(kernel.shape[-2:])
    normalised = case.has("bn_scale")
    regressor = Regressor(
      size=teacher.shape[1:3] if teacher.ndim == 4 else None,
      channels=teacher.shape[-1],
      batch_norm=normalised,
      use_bias=case.has("conv_bias"),
      activation=bool(case.number("use_relu", normalised)),
    )
    params = {"conv": {"kernel": kernel}}
    if case.has("conv_bias"):
      params["conv"]["bias"] = arrays["conv_bias"]
    if normalised:
      params["bn"] = {"scale": arrays["bn_scale"], "bias": arrays["bn_bias"]}
    student = run_connector(case, regressor, params, student)
    aux["aux_regressed"] = student
  terms = losses.fitnets(
    Output(features={"hint": student}), Output(features={"hint": teacher}), stages=["hint"]
  )
  return terms.total, aux


def simkd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  student, teacher = arrays["student"], arrays["teacher"]
  if case.has("conv1_kernel"):
    projector = Projector(
      size=teacher.shape[1:3],
      channels=teacher.shape[-1],
      reduction=int(case.number("factor", 2)),
    )
    params: dict[str, Any] = {}
    for i in (1, 2, 3):
      params[f"conv{i}"] = {"kernel": arrays[f"conv{i}_kernel"]}
      params[f"bn{i}"] = {"scale": arrays[f"bn{i}_scale"], "bias": arrays[f"bn{i}_bias"]}
    student = run_connector(case, projector, params, student)
  terms = losses.simkd(
    Output(features={"last": student}), Output(features={"last": teacher}), stages=["last"]
  )
  student, teacher = losses.match_sizes(student, teacher)
  aux = {"aux_trans_feat_student": student, "aux_trans_feat_teacher": teacher}
  if case.has("cls_kernel"):
    aux["aux_pred"] = jnp.mean(student, axis=(1, 2)) @ arrays["cls_kernel"] + jnp.broadcast_to(
      arrays["cls_bias"], (student.shape[0], arrays["cls_bias"].shape[0])
    )
  return terms.total, aux
