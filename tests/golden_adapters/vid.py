"""Golden cases of variational information distillation."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd import losses
from jaxkd.adapters import VariationalRegressors, variational_regressor_for
from jaxkd.types import Output
from tests.golden_cases import Arrays, Case


def vid(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  teacher = Output(features={"0": arrays["teacher"]})
  if case.has("pred_mean"):
    found = {"0": arrays["pred_mean"], "0_variance": arrays["pred_var"]}
    return losses.variational_information(Output(features=found), teacher, stages=["0"]).total, {}
  middle = arrays["reg_0_kernel"].shape[-1]
  shapes = arrays["student"].shape, arrays["teacher"].shape
  options = {"eps": case.number("eps", 1e-5), "middle": middle}
  module = VariationalRegressors({"0": variational_regressor_for(*shapes, stage="0", **options)})
  params: dict[str, Any] = {"log_scale": arrays["log_scale"]}
  for i in range(3):
    kernel = arrays[f"reg_{i}_kernel"]
    dense = arrays["student"].ndim == 2
    params[f"conv{i + 1}"] = {"kernel": kernel.reshape(kernel.shape[-2:]) if dense else kernel}
  inputs: Any = (Output(features={"0": arrays["student"]}), teacher, None)
  student, teacher = module.apply({"params": {"modules_0": params}}, inputs, train=True)
  return losses.variational_information(student, teacher, stages=["0"]).total, {}
