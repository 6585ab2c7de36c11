"""Golden cases of softmax regression."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.adapters import regressor_for
from jaxkd.types import Output
from tests.golden_adapters.case_outputs import run_connector
from tests.golden_cases import Arrays, Case


def srrl(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  teacher = arrays["teacher"]

  def classified(x):
    pooled = jnp.mean(x, axis=(1, 2)) if x.ndim == 4 else x
    bias = jnp.broadcast_to(arrays["cls_bias"], (len(x), arrays["cls_bias"].shape[0]))
    return pooled @ arrays["cls_kernel"] + bias

  if case.has("trans_feat"):
    projected, logits = arrays["trans_feat"], arrays["pred"]
  else:
    student, kernel = arrays["student"], arrays["conv_kernel"]
    like = (*student.shape[:-1], teacher.shape[-1])
    module = regressor_for(student.shape, like, stage="0", use_bias=False)
    kernel = kernel if student.ndim == 4 else kernel.reshape(kernel.shape[-2:])
    params = {
      "conv": {"kernel": kernel},
      "bn": {"scale": arrays["bn_scale"], "bias": arrays["bn_bias"]},
    }
    projected = run_connector(case, module, params, student)
    logits = classified(projected)
  of_teacher = arrays["teacher_logits"] if "teacher_logits" in arrays else classified(teacher)
  terms = losses.softmax_regression(
    Output(logits, {"0": projected}),
    Output(of_teacher, {"0": teacher}),
    stages=["0"],
    logit_weight=case.number("weight", 1.0),
  )
  aux = {
    "aux_feature_term": terms.feature,
    "aux_stat_term": terms.feature,
    "aux_logit_term": terms.logit / case.number("weight", 1.0),
    "aux_trans_feat": projected,
    "aux_pred": logits,
    "aux_teacher_logits": of_teacher,
  }
  return terms.total, aux
