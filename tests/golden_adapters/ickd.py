"""Golden cases of inter-channel correlation."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd import losses
from jaxkd.adapters import regressor_for
from jaxkd.types import Output
from tests.golden_adapters.case_outputs import run_connector
from tests.golden_cases import Arrays, Case


def ickd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  student, teacher = arrays["student"], arrays["teacher"]
  aux = {}
  if case.has("embed_kernel"):
    like = (*student.shape[:-1], teacher.shape[-1])
    module = regressor_for(student.shape, like, stage="0", use_bias=False, activation=False)
    params = {
      "conv": {"kernel": arrays["embed_kernel"]},
      "bn": {"scale": arrays["bn_scale"], "bias": arrays["bn_bias"]},
    }
    student = aux["aux_embedded"] = run_connector(case, module, params, student)
  s, t = (Output(features={"0": x}) for x in (student, teacher))
  eps = case.number("norm_eps", 1e-12)
  return losses.inter_channel_correlation(s, t, stages=["0"], eps=eps).total, aux
