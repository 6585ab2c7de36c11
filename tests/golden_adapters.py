"""How each method of the reference files is said in jaxkd.

An adapter is led by the keys a case has and by its `source`, never by its number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.connectors import Projector, Regressor
from jaxkd.types import Output
from tests.golden_cases import Adapter, Case

Arrays = Mapping[str, jax.Array]


def kd(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  torchdistill = "torchdistill" in case.word("source")
  soft, hard = 1.0, 0.0
  squared = bool(case.number("t_squared", 1))
  if case.has("labels") and case.has("alpha"):
    alpha = case.number("alpha", 0.0)
    # alpha weighs the soft term in attention-transfer, the hard one in torchdistill.
    soft, hard = (case.number("beta", 1.0 - alpha), alpha) if torchdistill else (alpha, 1.0 - alpha)
  if torchdistill and hard == 0.0:
    squared = False
    soft = 1.0
  terms = losses.knowledge_distillation(
    Output(logits=arrays["student"]),
    Output(logits=arrays["teacher"]),
    arrays.get("labels"),
    temperature=case.number("T", 4.0),
    squared_temperature=squared,
    soft_weight=soft,
    hard_weight=hard,
  )
  return terms.total, {}


def fitnet(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  student, teacher = arrays["student"], arrays["teacher"]
  aux = {}
  kernel = arrays.get("conv_kernel")
  if case.has("conv_tkernel"):
    # Reference code slides the kernel flipped.
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


def attention(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  options: dict[str, Any] = {"power": case.number("p", 2.0)}
  if "Zoo" in case.word("source"):
    options |= {"absolute": True, "reduce": "sum", "eps": 1e-6, "eps_added": True}
  if case.word("mode") == "paper":
    options |= {"norm": "paper", "reduce": "sum"}
  if case.has("eps"):
    options["eps"] = case.number("eps", 0.0)
  student, teacher = stages_of("student", arrays), stages_of("teacher", arrays)
  per_stage = [
    losses.attention_transfer(student, teacher, stages=[stage], **options).feature
    for stage in student.features
  ]
  terms = losses.attention_transfer(student, teacher, stages=list(student.features), **options)
  return terms.total, {"aux_stage_losses": jnp.stack(per_stage)}


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


ADAPTERS: dict[str, Adapter] = {"kd": kd, "fitnet": fitnet, "at": attention, "simkd": simkd}


def run_connector(case: Case, module: Any, params: Any, features: jax.Array) -> jax.Array:
  assert case.number("bn_eps", 1e-5) == 1e-5, "connectors normalise with eps 1e-5"
  statistics = {
    name: {"mean": jnp.zeros_like(bn["bias"]), "var": jnp.ones_like(bn["bias"])}
    for name, bn in params.items()
    if name.startswith("bn")
  }
  out, _ = module.apply(
    {"params": params, "batch_stats": statistics}, features, train=True, mutable=["batch_stats"]
  )
  return out


def stages_of(who: str, arrays: Arrays) -> Output:
  """All stages of `student`, or of `student_0`, `student_1`, ... in their order."""
  if who in arrays:
    return Output(features={"0": arrays[who]})
  found = sorted(int(name.rsplit("_", 1)[1]) for name in arrays if name.startswith(f"{who}_"))
  return Output(features={str(i): arrays[f"{who}_{i}"] for i in found})
